//! What `vaio serve` prints when it is ready: the exact commands that attach a client. Pure.

use std::{fmt::Write, path::Path};

use crate::{
    device::{NbdAddress, NbdUri},
    plan::{DiskPlan, Listen, Plan},
};

/// The text; its first line begins with `ready`.
pub(crate) fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let count = plan.disks.len();
    let noun = if count == 1 { "disk" } else { "disks" };
    let mut line = |text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{text}");
    };
    line(format!(
        "ready: serving {count} {noun}; stop with Ctrl-C or SIGTERM"
    ));
    for (index, disk) in plan.disks.iter().enumerate() {
        line(String::new());
        line(format!(
            "disk {} = {}, filters: {}",
            disk.name,
            disk.text,
            filters(disk)
        ));
        let Some(end) = plan
            .listen
            .iter()
            .find_map(|listen| End::of(listen, plan.tls.is_some()))
        else {
            line("  clients connect to the socket that systemd passed".into());
            continue;
        };
        let name = &disk.name;
        let uri = quoted(&end.uri(name));
        line("  attach to a VM:".into());
        line(format!(
            "    qemu-system-x86_64 ... -blockdev driver=nbd,node-name=vaio{index},{},export={name} \
             -device virtio-blk-pci,drive=vaio{index}",
            end.blockdev()
        ));
        line("  or:".into());
        line(format!(
            "    qemu-system-x86_64 ... -drive file={uri},format=raw,if=virtio"
        ));
        line("  look at it and copy it:".into());
        line(format!("    nbdinfo {uri}"));
        line(format!("    qemu-img info {uri}"));
        line(format!("    qemu-img convert -n -f raw -O raw IMAGE {uri}"));
    }
    if let Some(control) = &plan.control {
        let control = quoted(&control.display().to_string());
        line(String::new());
        line("  status and control:".into());
        line(format!("    vaio status {control}"));
    }
    if let Some(address) = plan.metrics {
        line(format!("    curl http://{address}/metrics"));
    }
    out
}

fn filters(disk: &DiskPlan) -> String {
    if disk.policy.filters.is_empty() {
        return "none".into();
    }
    let names: Vec<_> = disk
        .policy
        .filters
        .iter()
        .map(|spec| spec.name.as_str())
        .collect();
    names.join(", ")
}

/// One place to connect to.
struct End {
    address: NbdAddress,
    tls: bool,
}

impl End {
    fn of(listen: &Listen, tls: bool) -> Option<Self> {
        let address = match listen {
            Listen::Unix(path) => NbdAddress::Unix(absolute(path)),
            Listen::Tcp(address) => NbdAddress::Tcp(address.ip().to_string(), address.port()),
            Listen::Passed(socket) => {
                let address = socket.local_addr().ok()?;
                NbdAddress::Unix(address.as_pathname()?.to_owned())
            }
        };
        Some(Self { address, tls })
    }

    fn uri(&self, export: &str) -> String {
        NbdUri {
            address: self.address.clone(),
            export: export.to_owned(),
            tls: self.tls,
            tls_certificates: None,
        }
        .to_string()
    }

    fn blockdev(&self) -> String {
        let server = match &self.address {
            NbdAddress::Unix(path) => {
                format!("server.type=unix,server.path={}", path.display())
            }
            NbdAddress::Tcp(host, port) => {
                format!("server.type=inet,server.host={host},server.port={port}")
            }
        };
        if self.tls {
            format!("{server},tls-creds=TLS")
        } else {
            server
        }
    }
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// For a POSIX shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~/:=@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_word_for_a_shell() {
        assert_eq!(quoted("a/b.sock"), "a/b.sock");
        assert_eq!(
            quoted("nbd+unix:///x?socket=/s"),
            "'nbd+unix:///x?socket=/s'"
        );
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn end_is_told_in_every_form() {
        let end = End {
            address: NbdAddress::Tcp("::1".into(), 10809),
            tls: true,
        };
        assert_eq!(end.uri("a b"), "nbds://[::1]:10809/a%20b");
        assert_eq!(
            end.blockdev(),
            "server.type=inet,server.host=::1,server.port=10809,tls-creds=TLS"
        );
        let end = End {
            address: NbdAddress::Unix("/run/x".into()),
            tls: false,
        };
        assert_eq!(end.uri("disk"), "nbd+unix:///disk?socket=/run/x");
    }
}
