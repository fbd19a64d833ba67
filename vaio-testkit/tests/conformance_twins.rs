//! The suite on a filter that keeps its promises: no case may fail.

use vaio_core::Promise;
use vaio_testkit::{Subject, conformance, twins::write_back::WriteBackFactory};

fn write_back(promise: Promise) -> Subject {
    let factory = WriteBackFactory::tiny(promise);
    let blocks = factory.device_len(512) / 512;
    Subject::new(factory).device("cache", move |_| blocks)
}

conformance!(write_back_at_ack: write_back(Promise::AtAck));
conformance!(write_back_at_flush: write_back(Promise::AtFlush));
