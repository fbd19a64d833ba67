//! Opening: from whatever a crash left to two empty sheets.
//!
//! The framework has flushed backing and staging device before an unclean open, so that what is
//! read here is durable. A crash in here begins it again, with the same result:
//! * until everything is on the backing durably, nothing of the staging device is changed;
//! * then the older sheet is given up, durably, and only then the younger one. Were the younger
//!   one gone first, the older would be moved again, over what was newer (G2).

use vaio_core::{AttachContext, BlockDeviceExt, Error, ErrorKind, OpenReason, Result};

use crate::{
    device::Device,
    record::{self, Content, SHEETS},
};

/// Recovers and returns the generations of the two sheets, which are empty.
pub(crate) async fn open(cx: &AttachContext, device: &Device) -> Result<[u64; SHEETS]> {
    let mut found = Vec::new();
    for sheet in 0..SHEETS {
        found.push((device.read_stamp(sheet).await?, sheet));
    }
    // The older one first.
    found.sort_unstable();
    if cx.reason() != OpenReason::Attach {
        for (stamp, sheet) in &found {
            let Some(stamp) = stamp else {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the staging device has no sheets; it held writes that the backing lacks: \
                     find the right device",
                ));
            };
            // Both sheets are stamped at each open, before the framework records the ownership: an
            // older stamp is of a device that was not there when the disk was last opened.
            if stamp.owner + 1 < cx.epoch() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the staging device was left behind: the disk was opened without it since; \
                     detach the filter, or find the device that was used last",
                ));
            }
            replay(cx, device, *sheet, stamp.generation).await?;
        }
        cx.lower().flush().await?;
        cx.rt().probe("staging.replayed");
    }
    let youngest = found
        .iter()
        .filter_map(|(stamp, _)| Some((*stamp)?.generation))
        .max();
    let mut generations = [0; SHEETS];
    let turn = device.turn().await;
    for ((_, sheet), generation) in found.iter().zip(youngest.unwrap_or(0) + 1..) {
        turn.stamp(*sheet, generation).await?;
        generations[*sheet] = generation;
    }
    Ok(generations)
}

/// Brings every valid record of a sheet to the backing, one after another.
async fn replay(cx: &AttachContext, device: &Device, sheet: usize, generation: u64) -> Result<()> {
    let (lower, geometry) = (cx.lower(), device.geometry());
    for place in 0..geometry.records {
        let bytes = device.read_record(sheet, place).await?;
        // A place without a valid record: its write was never answered as durable. Those after it
        // may have been.
        match record::decode(geometry, generation, place, &bytes) {
            Some((extent, Content::Data(data))) => lower.write(extent.offset(), data).await?,
            Some((extent, Content::Zeroes)) => {
                lower.write_zeroes(extent.offset(), extent.len()).await?;
            }
            None => {}
        }
    }
    Ok(())
}
