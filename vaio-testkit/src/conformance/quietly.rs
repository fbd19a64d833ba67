//! Panics of a filter are contained and reported by the framework; while a case runs they do not
//! also print a back trace each.

use std::{cell::Cell, panic, sync::Once};

thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) }; }
static HOOK: Once = Once::new();

/// While it lives, panics of this thread print nothing.
pub(crate) struct Quiet(());

pub(crate) fn begin() -> Quiet {
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    Quiet(())
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(false);
    }
}
