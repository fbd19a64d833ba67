//! [`Bug`]: the switches, one for each row of the zoo.

/// A bug that a twin can be told to have. Each is one row of [`rows`](super::rows), where its
/// origin and what finds it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is described in its row")]
#[non_exhaustive]
pub enum Bug {
    // Write-back cache: the log.
    SecondWriteNotLogged,
    ZeroesNotLogged,
    DiscardInMemory,
    AckBeforeFlush,
    FuaIgnored,
    FlushDoesNothing,
    FlushErrorSwallowed,
    FsyncGate,
    SplitErrorSwallowed,
    OverlapUnordered,
    MapsFirstBlockOnly,
    GapReadAtStart,
    WriteGivenUp,
    SlotsHeldTogether,
    // Write-back cache: destaging.
    TailBeforeFlush,
    FlushBeforeWritesEnd,
    TailNotFlushed,
    SlotFreedBeforeTail,
    TailPassesSuperseded,
    ClearsNewerDirty,
    DestageUnordered,
    DestageErrorIgnored,
    BackingFsyncGate,
    DestageWaitsForGate,
    // Write-back cache: recovery.
    NoDataChecksum,
    StaleLap,
    ReplayInSlotOrder,
    StopsAtGap,
    WrapNotScanned,
    SequenceReset,
    EpochKept,
    EpochNotDurable,
    RecoveryErrorIgnored,
    // Write-back cache: discard, policy, life cycle.
    DiscardDropsRecord,
    DiscardUnordered,
    WriteThroughPastLog,
    CleanMarkEarly,
    DirtyUnderReported,
    DrainBeforeFlush,
    BypassWhileDirty,
    // Mirror.
    AckBeforeMirror,
    StaleSideNotRecorded,
    SidesUnordered,
    ReadsStaleSide,
    MirrorNotFlushed,
    OneFlushIsEnough,
    ResyncUnlocked,
    CopiedBeforeFlush,
    NoResync,
    // Observer, transform, read cache.
    ObserverKeepsWrite,
    KeyedByRequest,
    ZeroesNotTransformed,
    DiscardNotTransformed,
    FillUnlocked,
    ForgetsFirstBlockOnly,
    ZeroesKeepCached,
    // Not in a twin: `FirstFlushLost` stands before the backing of a disk that is opened again.
    OpenNotFlushed,
    // Ordered replicator.
    StepNotFlushed,
    RecoveryStepsNotKept,
    ReplicaAheadOfLog,
    ReplicaErrorForgotten,
    // Several hosts, shared storage.
    NotFenced,
    LeaseIgnored,
    StaleLogReplayed,
    // Replicator over a link.
    ResyncPassesWrite,
    WriteInResyncLost,
    ReconnectForgets,
    ClearedOnReceipt,
    NoticeClearsNewer,
    NackIgnored,
    DegradesSilently,
    InSyncEarly,
    FlushAckedEarly,
    EpochLazy,
    OldEpochApplied,
    OldSessionApplied,
    HomeIgnored,
}
