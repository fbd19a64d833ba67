//! The barrier audit, on filters whose barriers are known by hand.

use vaio_core::Promise;
use vaio_testkit::{Subject, twins::write_back::WriteBackFactory};

fn write_back(promise: Promise) -> Subject {
    let factory = WriteBackFactory::tiny(promise);
    let blocks = factory.device_len(512) / 512;
    Subject::new(factory).device("cache", move |_| blocks)
}

vaio_testkit::barrier_audit! {
    #[ignore = "nightly"]
    write_back_at_flush: write_back(Promise::AtFlush)
}
vaio_testkit::barrier_audit! {
    #[ignore = "nightly"]
    write_back_at_ack: write_back(Promise::AtAck)
}
