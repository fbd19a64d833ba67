//! `vaio serve`: opens the disks, listens, says `ready`, and ends in order.
//!
//! This thread does all IO: sockets, chains and devices run to completion on it. Control socket,
//! metrics, signals and the watchdog live on a second one ([`control`](crate::control)).
//!
//! Order of the end: stop accepting, let IO in flight end, close every disk (which flushes and
//! marks it clean), remove the sockets.

use std::{fs, io::Write, os::unix::fs::DirBuilderExt, sync::Arc};

use futures::{channel::oneshot, future::join_all};
use vaio_core::{Disk, Error, FilterRegistry, Result, Rt};

use crate::{
    cli::ServeArgs,
    control::{Control, Hosted, HostedDisk},
    dirty_context::DirtyContext,
    exit::{At, Failure, Outcome, Stage},
    nbd::{Export, Server, ServerSettings, TlsServer},
    plan::{Listen, Plan},
    ready,
    runtime::HostRuntime,
    stack::{self, Host, Made},
    systemd,
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or a disk from being closed clean.
pub(crate) fn run(args: &ServeArgs, registry: FilterRegistry) -> Outcome<()> {
    let plan = Plan::new(args, &registry)?;
    HostRuntime::run(|rt| serve(plan, registry, rt)).at(Stage::Serve)?
}

async fn serve(mut plan: Plan, registry: FilterRegistry, rt: Rt) -> Outcome<()> {
    let mut made = Made::default();
    if let Some(folder) = &plan.folder {
        made.make(folder, make_folder).at(Stage::Disk)?;
    }
    let mut disks = Vec::with_capacity(plan.disks.len());
    let started = start(&mut plan, &registry, &rt, &mut disks, &mut made).await;
    let started = match started {
        Ok(started) => started,
        Err(failure) => {
            close_all(&disks).await;
            return Err(failure);
        }
    };
    made.keep();
    let Started {
        server,
        stop,
        control,
    } = started;
    say(&ready::text(&plan)).at(Stage::Serve)?;
    systemd::ready(&format!("serving {} disks", disks.len()));
    let stop = async {
        // Its sender is gone only with the control thread: end then, too.
        let _ = stop.await;
    };
    server.run(stop).await;
    systemd::stopping("flushing and closing the disks");
    let closed = close_all(&disks).await;
    control.end();
    match closed {
        None => Ok(()),
        Some(error) => Err(Failure::new(Stage::Serve, error)),
    }
}

struct Started {
    server: Server,
    stop: oneshot::Receiver<()>,
    control: Control,
}

async fn start(
    plan: &mut Plan,
    registry: &FilterRegistry,
    rt: &Rt,
    disks: &mut Vec<Disk>,
    made: &mut Made,
) -> Outcome<Started> {
    let host = Host {
        rt,
        registry,
        options: &plan.options,
        vm: &plan.vm,
    };
    let mut hosted = Vec::with_capacity(plan.disks.len());
    for one in &plan.disks {
        let opened = stack::open(one, &host, made).await?;
        disks.push(opened.disk.clone());
        hosted.push(HostedDisk::new(one, opened));
    }
    let server = server(plan, disks)?;
    let hosted = Hosted {
        rt: Arc::clone(rt),
        disks: hosted,
        registry: registry.clone(),
        server: server.watch(),
    };
    let (control, stop) =
        Control::start(hosted, plan.control.clone(), plan.metrics).at(Stage::Disk)?;
    Ok(Started {
        server,
        stop,
        control,
    })
}

fn server(plan: &mut Plan, disks: &[Disk]) -> Outcome<Server> {
    let exports = plan
        .disks
        .iter()
        .zip(disks)
        .map(|(plan, disk)| {
            Export::new(plan.name.as_str(), disk.clone())
                .with_context(Arc::new(DirtyContext(disk.clone())))
        })
        .collect();
    let settings = settings(plan.tls.clone());
    let mut server = Server::new(exports, settings).at(Stage::Disk)?;
    for listen in &mut plan.listen {
        match listen {
            Listen::Unix(path) => server.listen_unix(path),
            Listen::Tcp(address) => server.listen_tcp(*address).map(|bound| *address = bound),
            Listen::Passed(socket) => socket
                .try_clone()
                .map_err(|cause| Error::io("cannot take the socket passed by systemd", cause))
                .and_then(|socket| server.adopt_unix(socket)),
        }
        .at(Stage::Disk)?;
    }
    Ok(server)
}

#[expect(
    clippy::field_reassign_with_default,
    reason = "the struct may get fields, so it has no literal outside its module"
)]
fn settings(tls: Option<TlsServer>) -> ServerSettings {
    let mut settings = ServerSettings::default();
    // A certificate that a client could do without would protect no one.
    settings.tls_required = tls.is_some();
    settings.tls = tls;
    settings
}

/// Closes every disk, flushed and clean; returns the first error.
async fn close_all(disks: &[Disk]) -> Option<Error> {
    join_all(disks.iter().map(Disk::close))
        .await
        .into_iter()
        .find_map(Result::err)
}

fn make_folder(folder: &std::path::Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().mode(0o700).create(folder).map_err(|cause| {
        let text = format!("cannot make the folder of the default disk: run it elsewhere, or name a disk, path={}", folder.display());
        Error::io(text, cause)
    })
}

/// Prints to stdout at once: whoever waits for `ready` reads a pipe.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .or_else(|cause| match cause.kind() {
            // No one reads it: that is no reason to end a VM's disk.
            std::io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(Error::io("cannot print to stdout", cause)),
        })
}
