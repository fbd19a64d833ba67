//! [`Filter`] and [`FilterFactory`]: what a vendor implements.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    AttachContext, Descriptor, DeviceInfo, DirtySource, FilterState, Hooks, Io, Lifecycle, Next,
    Outcome, Reply, Result,
};

/// Code in the IO path of one disk.
///
/// # Contract
/// `io` gets every IO of the operations that the [`Descriptor`] intercepts, but for those that
/// its [`hooks`](Self::hooks) pass. Four verdicts:
/// **pass** (`next.submit(io).await`), **complete** (`Ok` without `next`), **fail** (`Err`),
/// **defer** (await something first). What comes after `next...await` is the completion hook.
///
/// Any number of IOs at once; never block the thread; one reply each, of the right kind
/// ([`Reply::answers`]). Never submit a [`BlockDevice::submit`](crate::BlockDevice::submit)
/// obligation halfway: a filter that drops what `next` returned before it ended is named in an
/// event, and the IO runs to its end without it.
///
/// # Cancellation
/// A filter above may drop the future of `io` at any await. With
/// [`BypassSafety::Never`](crate::BypassSafety::Never) the framework then polls it to its end, so
/// that such a filter need not be cancel-safe; others must be.
///
/// # Panics
/// Are caught: the filter is marked faulted, an event is sent, and its
/// [`BypassSafety`](crate::BypassSafety) says what happens to the IO.
#[async_trait]
pub trait Filter: fmt::Debug + Send + Sync + 'static {
    /// Does one IO. Write it as one `match` over `io.op`: the filter's table of contents.
    ///
    /// # Errors
    /// Whatever the guest is to see.
    async fn io(&self, io: Io, next: Next<'_>) -> Result<Reply>;

    /// What the disk looks like above this filter, given what is below. Called after `open`,
    /// before any IO, and again after a resize. The framework masks the result with what the
    /// descriptor refuses.
    ///
    /// # Errors
    /// Why the filter cannot sit on such a device: the attach fails.
    fn shape(&self, below: &DeviceInfo) -> Result<DeviceInfo>;

    /// Hears what happens to the disk. See [`Verb`](crate::Verb) and [`Phase`](crate::Phase) for
    /// what may be slow and what may refuse. Calls never overlap each other.
    ///
    /// # Errors
    /// In `Prepare`: the verb is refused, and those that prepared hear `Abort` in reverse order.
    async fn lifecycle(&self, event: Lifecycle<'_>) -> Result<Outcome>;

    /// The quick way around [`io`](Self::io) for IO that need not wait; asked once, after `open`.
    /// `None` (the default): every IO goes through `io`. An observer that is its own hooks returns
    /// `Some(self)`. A panic here fails the open, like one in `open`.
    fn hooks(self: Arc<Self>) -> Option<Arc<dyn Hooks>> {
        None
    }

    /// What the filter is like now. Cheap, from any thread, must not wait.
    fn state(&self) -> FilterState {
        FilterState::default()
    }

    /// The filter's dirty data; `None` (the default) says that it holds none.
    fn dirty(&self) -> Option<Arc<dyn DirtySource>> {
        None
    }

    /// Translates what is known of the allocation below into what is true above. The default is
    /// the safe answer: all data.
    ///
    /// Observers return `below` unchanged; a filter that changes content maps holes to
    /// [`Allocation::Unmapped`](crate::Allocation::Unmapped), and one that holds data overlays it.
    fn allocation(&self, below: crate::AllocationMap) -> crate::AllocationMap {
        crate::AllocationMap::uniform(below.range(), crate::Allocation::Data)
    }
}

/// Makes instances of one kind of filter. One per program, registered in a
/// [`FilterRegistry`](crate::FilterRegistry).
#[async_trait]
pub trait FilterFactory: fmt::Debug + Send + Sync + 'static {
    /// What the filter is. Constant.
    fn descriptor(&self) -> Descriptor;

    /// Validates settings and shape. Touches no device; may be called while another instance
    /// runs.
    ///
    /// # Errors
    /// Why the filter cannot be opened so; nothing was changed.
    async fn prepare(&self, cx: &AttachContext) -> Result<()>;

    /// Opens an instance; also the recovery path ([`AttachContext::reason`] says which). The disk
    /// is quiesced, and IO below through [`AttachContext::lower`] is admitted.
    ///
    /// # Errors
    /// The attach or open fails; the instance that was there before, if any, is opened again.
    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>>;
}
