//! The switches that show over plain memory: a process kill keeps all that was written, and what is
//! read at the end differs from what the correct twin gives.

use std::{sync::Arc, time::Duration};

use vaio_core::*;
use vaio_testkit::zoo::{Bug, Row, Twin, rows};

use crate::support::*;

/// What a script does, step by step.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Writes these bytes, a block each, from a block on.
    Write(u64, &'static [u8]),
    Zero(u64),
    Discard(u64),
    /// Reads, so that a cache has it.
    Read(u64, u64),
    /// The guest waits; the background works.
    Idle,
    Kill,
    Close,
}

use Act::*;

const SCRIPTS: &[(Bug, &[Act])] = &[
    (
        Bug::SecondWriteNotLogged,
        &[Write(0, &[1]), Write(0, &[2]), Kill],
    ),
    (Bug::ZeroesNotLogged, &[Zero(0), Kill]),
    (Bug::DiscardInMemory, &[Discard(0), Kill]),
    (Bug::MapsFirstBlockOnly, &[Write(0, &[1, 2])]),
    (Bug::GapReadAtStart, &[Write(1, &[1])]),
    (
        Bug::DestageUnordered,
        &[Write(0, &[1]), Write(0, &[2]), Idle],
    ),
    (
        Bug::ReplayInSlotOrder,
        &[
            Write(1, &[1, 1, 1]),
            Idle,
            Write(0, &[2]),
            Write(0, &[3]),
            Kill,
        ],
    ),
    (
        Bug::WrapNotScanned,
        &[Write(0, &[1, 1, 1, 1]), Idle, Write(0, &[2, 3, 4, 5]), Kill],
    ),
    (
        Bug::SequenceReset,
        &[Write(0, &[1]), Write(1, &[2]), Kill, Write(1, &[3]), Kill],
    ),
    (
        Bug::EpochKept,
        &[Write(0, &[1]), Close, Write(0, &[2]), Kill],
    ),
    (Bug::DiscardDropsRecord, &[Write(0, &[1, 2]), Discard(0)]),
    (Bug::DiscardUnordered, &[Write(0, &[1]), Discard(0), Idle]),
    (Bug::ObserverKeepsWrite, &[Write(0, &[1]), Kill]),
    (Bug::KeyedByRequest, &[Write(0, &[1, 1])]),
    (Bug::ZeroesNotTransformed, &[Zero(0)]),
    (
        Bug::ForgetsFirstBlockOnly,
        &[Read(1, 1), Write(0, &[1, 2]), Read(0, 1)],
    ),
    (Bug::ZeroesKeepCached, &[Read(0, 1), Zero(0)]),
];

async fn play(rt: Rt, row: Row, bug: Option<Bug>, script: &[Act]) -> Vec<Vec<u8>> {
    let mut media = Media::new();
    let replica: Arc<dyn BlockDevice> = Arc::new(RamDisk::with_block(8 * 512, 512));
    media.named.push(("replica", replica));
    let first = Io::write(0, blocks(&[90, 91, 92, 93]));
    // A transform joins an empty disk only.
    if row.twin != Twin::Transform {
        media.backing.submit(first).await.unwrap();
    }
    let open = || async {
        let registry = row.twin.registry(row.promise, bug);
        media
            .open_in(&rt, row.twin.filter(), registry)
            .await
            .unwrap()
    };
    let mut disk = open().await;
    for step in script {
        match *step {
            Write(block, bytes) => poke(&disk, block, bytes).await,
            Zero(block) => {
                let extent = Extent::new(block * 512, 512);
                disk.submit(Io::write_zeroes(extent)).await.unwrap();
            }
            Discard(block) => {
                let extent = Extent::new(block * 512, 512);
                disk.submit(Io::discard(extent)).await.unwrap();
            }
            Read(block, count) => {
                let extent = Extent::new(block * 512, count * 512);
                disk.submit(Io::read(extent)).await.unwrap();
            }
            Idle => rt.sleep(Duration::from_secs(1)).await,
            Kill => {
                drop(disk);
                disk = open().await;
            }
            Close => {
                disk.close().await.unwrap();
                disk = open().await;
            }
        }
    }
    let mut seen = Vec::new();
    for (block, count) in [(1, 1), (0, 1), (2, 1), (0, 4)] {
        let extent = Extent::new(block * 512, count * 512);
        let data = disk.submit(Io::read(extent)).await.unwrap().into_data();
        seen.push(data.to_vec());
    }
    seen
}

#[test]
fn switch_that_is_on_changes_what_is_read() {
    for (bug, script) in SCRIPTS {
        let row = rows().into_iter().find(|row| row.bug == *bug).unwrap();
        let right = run(|rt| play(rt, row.clone(), None, script));
        let wrong = run(|rt| play(rt, row.clone(), Some(*bug), script));
        assert!(right != wrong, "{bug:?} does not show");
    }
}
