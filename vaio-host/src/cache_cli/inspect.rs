//! `vaio cache inspect`: opens the device for reading only and shows the library's report.

use serde_json::json;
use vaio_cache::{
    CACHE_FORMAT_VERSION,
    inspect::{Depth, Inspection, inspect},
};
use vaio_core::{Error, ErrorKind, Result, Rt};

use super::{InspectArgs, show};
use crate::{
    client,
    device::{Direct, FileOptions, ImageLock, Spec, open_spec},
    exit::{At, Failure, Outcome, Stage},
    runtime::HostRuntime,
};

/// Shows a cache device.
///
/// # Errors
/// A device that cannot be read, and, after the report, a log that is not there or damaged.
pub(super) fn run(args: &InspectArgs) -> Outcome<()> {
    let spec: Spec = args.file.parse().at(Stage::Usage)?;
    let is_in_use = match &spec {
        Spec::File(path) => ImageLock::is_written(path).at(Stage::Disk)?,
        _ => false,
    };
    let depth = if args.records {
        Depth::Payloads
    } else {
        Depth::Headers
    };
    let report = HostRuntime::run(|rt| async move { read(&spec, depth, &rt).await });
    let report = report
        .at(Stage::Disk)?
        .at(Stage::Disk)
        .map_err(|failure| failure.with_place("file", &args.file))?;
    let text = if args.json {
        let report = json!({
            "file": args.file,
            "in_use": is_in_use,
            "device": show::to_json(&report),
        });
        format!("{report:#}\n")
    } else {
        show::to_text(&args.file, is_in_use, &report)
    };
    client::print(&text)?;
    match wrong(&report) {
        Some(text) => {
            let error = Error::new(ErrorKind::Corrupt, format!("{text}, file={}", args.file));
            Err(Failure::new(Stage::Serve, error))
        }
        None => Ok(()),
    }
}

/// Reads a device that may be in use, and says what is on it.
///
/// # Errors
/// Those of opening and reading it.
pub(super) async fn read(spec: &Spec, depth: Depth, rt: &Rt) -> Result<Inspection> {
    // Through the page cache: any file can be read in any blocks.
    let options = FileOptions::default()
        .with_read_only(true)
        .with_direct(Direct::Off);
    let device = open_spec(spec, &options, rt).await?;
    inspect(device, depth).await
}

/// Of a log that this version neither reads nor writes.
pub(super) fn of_other_version(version: u32) -> String {
    format!(
        "the cache device has a log in a format of another version, version={version} \
         known={CACHE_FORMAT_VERSION}: use the version of vaio that wrote it"
    )
}

/// What is wrong with a device, in one line.
fn wrong(report: &Inspection) -> Option<String> {
    if let Some(version) = report.other_version() {
        return Some(of_other_version(version));
    }
    let Some(log) = &report.log else {
        return Some("there is no cache log here: find the right device".into());
    };
    if let Some(damage) = &log.damage {
        return Some(damage.text.clone());
    }
    (log.bad_payloads > 0).then(|| {
        format!(
            "content in the log does not verify: those extents will fail to read; restore the \
             device, records={}",
            log.bad_payloads
        )
    })
}
