//! Send, Sync, 'static and object safety of what an embedder holds: a change of these breaks
//! programs, so it is made on purpose.
#![allow(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::items_after_statements,
    clippy::too_many_lines,
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "tests own their runtime, and may fail"
)]

use static_assertions_by_hand::*;
use vaio_core::*;

mod static_assertions_by_hand {
    pub(crate) fn shared<T: Send + Sync + 'static + ?Sized>() {}
    pub(crate) fn sent<T: Send + 'static + ?Sized>() {}
    pub(crate) fn sent_value<T: Send>(_: &T) {}
    pub(crate) fn cloned<T: Clone>() {}
}

#[test]
fn handles_and_values_go_between_threads() {
    shared::<Disk>();
    cloned::<Disk>();
    sent::<Port>();
    shared::<Completion>();
    shared::<Io>();
    shared::<Reply>();
    shared::<Error>();
    cloned::<Error>();
    shared::<Event>();
    shared::<EventBus>();
    sent::<EventStream>();
    sent::<StateStream>();
    shared::<DiskState>();
    shared::<DiskStats>();
    shared::<Quiesced>();
    shared::<PointInTime>();
    shared::<Flushing>();
    sent::<Prepared>();
    sent::<DiskBuilder>();
    shared::<AttachContext>();
    cloned::<AttachContext>();
    shared::<Lower>();
    cloned::<Lower>();
    sent::<Step>();
    shared::<Sidecar>();
    shared::<BufferPool>();
    sent::<AlignedBuf>();
    shared::<RamDisk>();
    shared::<FilterRegistry>();
    shared::<Policy>();
    shared::<sync::RangeLock>();
    shared::<sync::Semaphore>();
    shared::<sync::Notify>();
    shared::<sync::Mutex<Vec<u8>>>();
}

#[test]
fn traits_are_objects() {
    shared::<dyn BlockDevice>();
    shared::<dyn Filter>();
    shared::<dyn FilterFactory>();
    shared::<dyn DirtySource>();
    shared::<dyn HeldPoint>();
    shared::<dyn Runtime>();
    shared::<dyn SidecarStore>();
    shared::<dyn DiskLock>();
    shared::<dyn DeviceProvider>();
}

#[test]
fn futures_of_calls_are_send() {
    fn check(disk: &Disk, port: &mut Port, next: Next<'_>, step: &AttachContext) {
        sent_value(&disk.submit(Io::flush()));
        sent_value(&disk.close());
        sent_value(&disk.attach(FilterSpec::new("x")));
        sent_value(&disk.quiesce(Level::Drained, Instant::default()));
        sent_value(&port.next());
        sent_value(&next.submit(Io::flush()));
        sent_value(&next.flush());
        sent_value(&step.step());
    }
    let _: fn(&Disk, &mut Port, Next<'_>, &AttachContext) = check;
}
