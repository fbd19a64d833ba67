//! A replicator over a link: a source that sends every write to a target on another host, and a
//! target that can take over. What the guest was told is durable is durable on both, or the lease
//! record says that the target is behind.
//!
//! * N1: a write gets its number and is sent while it holds its blocks, so that the target gets
//!   overlapping writes in the order in which the disk does; a copy of a block, too.
//! * N2: a block is marked before its write is sent or done, and stays marked until the target
//!   says that this write, or a newer one, is *durable* there. An older notice clears nothing newer.
//! * N3: a flush is answered when the target has made durable everything before it; if that takes
//!   too long, when the lease record says, durably, that the target is behind.
//! * N4: a connection begins with a copy of every marked block. Until that ends it says nothing
//!   about what the target has.
//! * N5: what the target refused is marked, and nothing that the connection says later counts.
//! * N6: the record says "in sync" again only while no flush can be answered, after the target has
//!   everything.
//! * N7: the target knows the newest owner's epoch, durably before it answers, and that owner's
//!   newest session; a record of an older one changes nothing, whenever it comes.
//! * N8: only the host where the disk was last owned, or one that is in sync, may own it.
//! * N9: a new owner's target is behind until it was copied: it may also be *ahead*.
//!
//! The marks are in memory: after a crash of the source every block is copied.

mod dirty;
mod source;
mod target;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use vaio_core::{
    AttachContext, BypassSafety, Class, Descriptor, Filter, FilterFactory, OpKind, Promise, Result,
};

use crate::{
    sim::Host,
    world::{Lease, Link},
    zoo::Bug,
};
pub use target::Target;

/// Name of the filter.
pub const NAME: &str = "twin-replicator";
/// How long a flush waits for the target, and a dial for its answer.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two connections.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Who sent a message: the owner's epoch, and the number of the connection in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Session {
    /// Of the lease.
    pub epoch: u64,
    /// Counts an owner's connections.
    pub number: u64,
}

/// What goes over the link.
#[derive(Clone, Debug)]
pub enum Message {
    /// The first one of a connection.
    Hello(Session),
    /// The target takes part.
    Welcome,
    /// The target knows a newer owner.
    Refused,
    /// One block.
    Write {
        /// Who writes.
        session: Session,
        /// Its number.
        seq: u64,
        /// Byte offset.
        offset: u64,
        /// The block.
        data: Bytes,
    },
    /// Asks that everything sent before becomes durable.
    Flush {
        /// The last number before it.
        seq: u64,
    },
    /// The target has the write.
    Written {
        /// Its number.
        seq: u64,
    },
    /// Everything up to this number is durable on the target.
    Flushed {
        /// The number.
        seq: u64,
    },
    /// The target could not do something.
    Nack,
}

/// Makes the source's filter, for one ownership of the disk.
#[derive(Clone, Debug)]
pub struct ReplicatorFactory {
    link: Link<Message>,
    host: Host,
    lease: Lease,
    bug: Option<Bug>,
}

impl ReplicatorFactory {
    /// A source in this process, that owns the disk by `lease` and dials the target over `link`.
    pub const fn new(link: Link<Message>, host: Host, lease: Lease, bug: Option<Bug>) -> Self {
        Self {
            link,
            host,
            lease,
            bug,
        }
    }
}

#[async_trait]
impl FilterFactory for ReplicatorFactory {
    fn descriptor(&self) -> Descriptor {
        Descriptor::new(NAME, env!("CARGO_PKG_VERSION"), Class::Replicate)
            .with_summary("Sends every write to another host; a model of the testkit.")
            // Zeroes, discard and fua come as writes and flushes: one way to do a thing.
            .intercept(&[OpKind::Write, OpKind::Flush])
            .pass(&[OpKind::Read, OpKind::Prefetch])
            .with_bypass(BypassSafety::Never)
            .with_promise(Promise::AtFlush)
            .with_reserved_slots(2)
    }

    async fn prepare(&self, _cx: &AttachContext) -> Result<()> {
        Ok(())
    }

    async fn open(&self, cx: AttachContext) -> Result<Arc<dyn Filter>> {
        let source = source::Source::new(
            cx,
            self.link.clone(),
            self.host.clone(),
            self.lease.clone(),
            self.bug,
        );
        Ok(source::start(source))
    }
}
