//! [`DirtyContext`]: what is not on the backing yet, as the NBD meta context `vaio:dirty`.
//!
//! A backup tool that reads the map and then the backing knows what the backing lacks. The map may
//! name more than that, never less.

use async_trait::async_trait;
use vaio_core::{Disk, Extent, Level, Result};

use crate::nbd::{MetaContext, StatusMap};

/// Flag of a stretch that the backing lacks, durably. All else is there.
const DIRTY: u32 = 1;

/// The context of one disk.
#[derive(Debug)]
pub(crate) struct DirtyContext(pub(crate) Disk);

#[async_trait]
impl MetaContext for DirtyContext {
    fn name(&self) -> &'static str {
        "vaio:dirty"
    }

    async fn status(&self, range: Extent) -> Result<StatusMap> {
        let dirty = self.0.dirty_extents(Level::BackingDurable, range);
        let mut map = StatusMap::default();
        let mut at = range.offset();
        for extent in dirty.extents() {
            map.push(extent.offset() - at, 0);
            map.push(extent.len(), DIRTY);
            at = extent.end();
        }
        map.push(range.end() - at, 0);
        Ok(map)
    }
}
