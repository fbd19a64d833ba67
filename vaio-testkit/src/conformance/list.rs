//! The list of cases, once: the macro makes a test of each, and the table below finds what it does.

/// Calls `$callback! { [$($args)*] group { case case ... } ... }` with every case.
#[doc(hidden)]
#[macro_export]
macro_rules! __vaio_cases {
    ($callback:path, [$($args:tt)*]) => {
        $callback! { [$($args)*]
            basic { read_your_writes neighbours whole_disk zero_length largest_transfer deep_queue long_runs }
            order { overlapping_writes read_against_write partial_overlaps schedules }
            flush { covers_acked nothing_to_flush against_writes repeated }
            fua { durable_at_ack covers_itself mixed_with_plain }
            zero_discard { zeroes zeroes_survive discard discard_survives discard_against_write neighbours }
            crash { none_kept all_kept acked_kept drop_one keep_one prefix pairs process_kill overwrites fua_overwritten wraps any_moment several }
            era2 { write_after_recovery long_runs kill_then_power }
            torn { small_writes large_writes }
            recovery_crash { small_writes overwrites }
            faults { backing_read backing_write backing_gone backing_stalls beside_read beside_write beside_gone no_space latent any recovery_read recovery_write recovery_flush reread open_read open_write open_flush open_any beside_wraps attach_again }
            fsyncgate { backing beside then_write }
            dirty { never_under_reported across_crashes flush_to clean_after_close write_through }
            snapshot { quiesced held }
            lifecycle { close_and_open detach replace reopen_often shape }
            cancel { write read flush any }
            bypass { transparent_when_allowed filter_fails }
            liveness { smallest_reserve everything_ends idle_ends stalls_below }
            determinism { same_run same_plan }
            ordered { cut_at_every_boundary cut_in_long_runs quiet_target_equals }
            handover { planned io_in_flight fresh_devices stale_devices_return close_in_flight }
            failover { process_kill power_loss devices_survive devices_lost devices_stale ghost_write two_owners old_host_returns double failback target_cut }
        }
    };
}

macro_rules! names {
    ([] $($group:ident { $($case:ident)* })*) => {
        /// Every case as `group::case`, in order.
        pub const CASES: &[&str] = &[$($(concat!(stringify!($group), "::", stringify!($case)),)*)*];
    };
}

crate::__vaio_cases! { names, [] }

/// Runs the conformance suite on a filter: one `#[test]` for each case, in a module of this name.
///
/// The subject is a factory, or a [`Subject`](crate::Subject) made from one. Each case prints what
/// it did; one that the filter's promise does not cover prints why it was skipped. A case named in
/// `known_failures` must fail: when it passes, the test fails, so that the list stays true.
///
/// ```no_run
/// # use vaio_testkit::twins::observer::ObserverFactory;
/// vaio_testkit::conformance!(my_observer: ObserverFactory::default());
/// vaio_testkit::conformance!(same_with_a_known_bug: ObserverFactory::default(),
///     known_failures = ["torn::large_writes" => "tracked as PROJ-1"]);
/// # fn main() {}
/// ```
///
/// Environment: `VAIO_BUDGET` (`quick`, `nightly`, or a factor such as `3` of the runs of each
/// case), `VAIO_SEED` (first seed of random runs), `VAIO_PLAN` (replays one saved plan instead),
/// `VAIO_SHRINK=0` (failures as found), `VAIO_ARTIFACTS` (folder for plans and timelines, default
/// `target/vaio`).
#[macro_export]
macro_rules! conformance {
    ($name:ident : $subject:expr $(, known_failures = [$($case:literal => $why:literal),* $(,)?])? $(,)?) => {
        mod $name {
            #[allow(unused_imports, reason = "the subject may be written with names from around it")]
            use super::*;

            pub(crate) fn subject() -> $crate::Subject {
                $crate::Subject::from($subject)
            }

            pub(crate) const KNOWN: &[(&str, &str)] = &[$($(($case, $why)),*)?];

            $crate::__vaio_cases! { $crate::__vaio_tests, [] }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __vaio_tests {
    ([] $($group:ident { $($case:ident)* })*) => {
        $(
            mod $group {
                $(
                    #[test]
                    fn $case() {
                        $crate::conformance::check(
                            &super::subject(),
                            concat!(stringify!($group), "::", stringify!($case)),
                            &$crate::conformance::Caller {
                                known_failures: super::KNOWN,
                                package: env!("CARGO_PKG_NAME"),
                                folder: env!("CARGO_MANIFEST_DIR"),
                                test: concat!(module_path!(), "::", stringify!($case)),
                            },
                        );
                    }
                )*
            }
        )*
    };
}
