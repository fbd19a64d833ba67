//! An allocator that counts what is allocated at the moment.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

/// Bytes that are allocated now.
pub static LIVE: AtomicI64 = AtomicI64::new(0);

pub struct Counting;

#[allow(
    unsafe_code,
    reason = "an allocator that counts; forwards to the one the `vaio` program uses"
)]
// SAFETY: every call is forwarded unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: the caller's obligations are passed on.
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }
}
