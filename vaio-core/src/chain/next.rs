//! [`Next`]: what a filter passes IO on with. It goes strictly downwards.

use std::{future::Future, panic::Location, sync::Arc};

use bytes::Bytes;

use super::{Chain, Submit};
use crate::{DeviceInfo, Extent, Io, Op, Result, slot::Slot};

/// What accompanies one IO through the chain.
#[derive(Clone, Debug)]
pub(crate) struct IoCx {
    pub(crate) chain: Arc<Chain>,
    pub(crate) slot: Arc<Slot>,
}

/// Who could let go of what is submitted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Path {
    /// No filter: the IO's root is owned as a whole.
    Root,
    /// Only filters that forward each IO at most once and unchanged: if one fails, the IO can be
    /// rescued from below it.
    Observed,
    /// Some filter.
    Filtered,
}

/// The way down from one filter: the layers below it, for the IO it was called with.
///
/// Copy it, submit through it any number of times, concurrently if you like. Its methods return
/// futures that do nothing before their first poll. Dropping one after that does not stop the IO:
/// it runs to its end without you, and an event names your filter.
///
/// # Errors
/// Of every method: what is below fails the IO; or [`ErrorKind::FilterFault`](crate::ErrorKind)
/// because *your* filter sent down what its descriptor refuses, what is out of range, or an empty
/// or misaligned extent.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    pub(crate) cx: &'a IoCx,
    pub(crate) way: Way,
}

/// Where from and how an IO goes, in one number: so that a [`Next`] goes in two registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way(u32);

impl Way {
    /// `level`: where to look the target up; `caller`: layer that submits, plus one, 0: the port.
    #[inline]
    pub(crate) const fn new(level: u8, caller: u8, path: Path) -> Self {
        Self(u32::from_le_bytes([level, caller, path as u8, 0]))
    }

    #[inline]
    pub(crate) const fn level(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    #[inline]
    pub(crate) const fn caller(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    #[inline]
    pub(crate) const fn is(self, path: Path) -> bool {
        self.0.to_le_bytes()[2] == path as u8
    }

    /// The same, with layers that were passed by their [`Hooks`](crate::Hooks) on the way.
    #[inline]
    pub(crate) const fn hooked(self) -> Self {
        let [level, caller, path, _] = self.0.to_le_bytes();
        Self(u32::from_le_bytes([level, caller, path, 1]))
    }

    #[inline]
    pub(crate) const fn is_hooked(self) -> bool {
        self.0.to_le_bytes()[3] != 0
    }

    /// The same from the start, to be looked up at `level` for `caller`.
    pub(crate) const fn at(self, level: u8, caller: u8) -> Self {
        let [_, _, path, _] = self.0.to_le_bytes();
        Self(u32::from_le_bytes([level, caller, path, 0]))
    }
}

impl<'a> Next<'a> {
    #[inline]
    pub(crate) const fn new(cx: &'a IoCx, level: u8, caller: u8, path: Path) -> Self {
        let way = Way::new(level, caller, path);
        Self { cx, way }
    }

    pub(crate) const fn root(cx: &'a IoCx, level: u8) -> Self {
        Self::new(cx, level, level, Path::Root)
    }

    /// What the disk looks like below the filter.
    pub fn info(&self) -> &'a DeviceInfo {
        self.cx.chain.info(self.way.level() as usize)
    }

    /// Passes an IO on. Use the IO that the filter was called with, or one derived from it with
    /// [`Io::with_op`], so that it can be followed.
    #[track_caller]
    pub fn submit(self, io: Io) -> Submit<'a> {
        Submit::new(self, io, Location::caller())
    }

    /// Reads an extent.
    ///
    /// # Errors
    /// As every method of [`Next`].
    #[track_caller]
    pub fn read(self, extent: Extent) -> impl Future<Output = Result<Bytes>> + Send + 'a {
        let read = Submit::new(self, Io::read(extent), Location::caller());
        async move { Ok(read.await?.into_data()) }
    }

    /// Writes; durable after the next successful flush.
    #[track_caller]
    pub fn write(self, offset: u64, data: Bytes) -> impl Future<Output = Result<()>> + Send + 'a {
        self.done(
            Op::Write {
                offset,
                data,
                fua: false,
            },
            Location::caller(),
        )
    }

    /// Zeroes an extent; may deallocate.
    #[track_caller]
    pub fn write_zeroes(self, extent: Extent) -> impl Future<Output = Result<()>> + Send + 'a {
        let op = Op::WriteZeroes {
            extent,
            may_unmap: true,
            fast_only: false,
            fua: false,
        };
        self.done(op, Location::caller())
    }

    /// Discards an extent.
    #[track_caller]
    pub fn discard(self, extent: Extent) -> impl Future<Output = Result<()>> + Send + 'a {
        self.done(Op::Discard { extent, fua: false }, Location::caller())
    }

    /// Makes every completed write durable.
    #[track_caller]
    pub fn flush(self) -> impl Future<Output = Result<()>> + Send + 'a {
        self.done(Op::Flush, Location::caller())
    }

    fn done(
        self,
        op: Op,
        site: &'static Location<'static>,
    ) -> impl Future<Output = Result<()>> + Send + 'a {
        let submit = Submit::new(self, Io::new(op), site);
        async move { submit.await.map(drop) }
    }
}
