//! The correct twins as subjects.

use vaio_core::Promise;
use vaio_testkit::{
    Subject,
    twins::{
        mirror::MirrorFactory, observer::ObserverFactory, ordered::OrderedFactory,
        read_cache::ReadCacheFactory, transform::TransformFactory, write_back::WriteBackFactory,
    },
    zoo::Bug,
};

fn log_blocks() -> u64 {
    WriteBackFactory::tiny(Promise::AtFlush).device_len(512) / 512
}

pub(crate) fn write_back(promise: Promise, bug: Option<Bug>) -> Subject {
    let factory = WriteBackFactory::tiny(promise);
    Subject::new(match bug {
        Some(bug) => factory.with_bug(bug),
        None => factory,
    })
    .device("cache", |_| log_blocks())
}

pub(crate) fn ordered(bug: Option<Bug>) -> Subject {
    let factory = OrderedFactory::tiny();
    Subject::new(match bug {
        Some(bug) => factory.with_bug(bug),
        None => factory,
    })
    .device("journal", |_| log_blocks())
    .device("replica", |_| 4)
}

pub(crate) fn mirror(bug: Option<Bug>) -> Subject {
    let factory = MirrorFactory::default();
    Subject::new(match bug {
        Some(bug) => factory.with_bug(bug),
        None => factory,
    })
    .device("mirror", |_| 4)
}

pub(crate) fn twins() -> Vec<Subject> {
    vec![
        write_back(Promise::AtFlush, None),
        write_back(Promise::AtAck, None),
        ordered(None),
        mirror(None),
        Subject::new(ObserverFactory::default()),
        Subject::new(TransformFactory::new(7)),
        Subject::new(ReadCacheFactory::tiny()),
    ]
}
