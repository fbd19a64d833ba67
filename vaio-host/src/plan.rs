//! [`Plan`]: what `vaio serve` is going to do, checked before anything is created or opened.
//!
//! Whatever can be found wrong by reading is found here: names, sizes, sockets in use, filters
//! and their settings, policy and TLS files. Nothing here changes anything.

use std::{
    ffi::OsString,
    io,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use vaio_core::{Content, DeviceInfo, Error, ErrorKind, FilterRegistry, Policy, Resolved};

use crate::{
    cli::{self, ServeArgs},
    default_filter,
    device::{FileOptions, Spec},
    device_size,
    exit::{At, Failure, Outcome, Stage},
    filter_arg,
    nbd::TlsServer,
    policy_file::PolicyFile,
    systemd,
};

/// Folder of the defaults.
pub(crate) const DATA_DIR: &str = "vaio-data";
/// Size of the default disk, in bytes.
const DATA_DISK_BYTES: u64 = 1 << 30;
/// Smallest block of any disk, in bytes.
const BLOCK_MIN: u64 = 512;
/// Longest path of a Unix socket, in bytes (`sun_path` less its end).
const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a disk, in bytes.
const NAME_MAX: usize = 255;

/// Everything that `serve` needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) vm: String,
    /// Created where missing.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) disks: Vec<DiskPlan>,
    pub(crate) listen: Vec<Listen>,
    pub(crate) control: Option<PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) tls: Option<TlsServer>,
    pub(crate) options: FileOptions,
}

/// One disk.
#[derive(Debug)]
pub(crate) struct DiskPlan {
    pub(crate) name: String,
    pub(crate) spec: Spec,
    /// As the user wrote it.
    pub(crate) text: String,
    /// Size to make the file with, where it is missing.
    pub(crate) create: Option<u64>,
    pub(crate) policy: Policy,
    /// Where the sidecar lives; `None`: in memory.
    pub(crate) sidecar: Option<PathBuf>,
}

/// Where NBD clients connect.
#[derive(Debug)]
pub(crate) enum Listen {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// Bound by systemd.
    Passed(UnixListener),
}

impl Plan {
    /// Checks the arguments.
    ///
    /// # Errors
    /// The first mistake.
    pub(crate) fn new(args: &ServeArgs, registry: &FilterRegistry) -> Outcome<Self> {
        let mut args = args.clone();
        args.disks
            .splice(0..0, std::mem::take(&mut args.positional));
        let folder = defaults(&mut args);
        let filters = FilterChoice::new(&args, registry)?;
        let disks = disk_plans(&args, folder.as_deref(), &filters, registry)?;
        let control = args
            .control
            .clone()
            .or_else(|| beside(&disks[0], "control"));
        let listen = listen(&args, &disks)?;
        for path in listen
            .iter()
            .filter_map(Listen::path)
            .chain(control.as_deref())
        {
            check_socket(path, folder.as_deref())?;
        }
        if control
            .as_deref()
            .is_some_and(|control| listen.iter().any(|listen| listen.path() == Some(control)))
        {
            return Err(Failure::usage(
                "NBD and control need a socket each; give them two paths",
            ));
        }
        let tls = match (&args.tls_cert, &args.tls_key) {
            (Some(cert), Some(key)) => Some(
                TlsServer::from_pem(cert, key, args.tls_client_ca.as_deref()).at(Stage::Usage)?,
            ),
            _ => None,
        };
        for listen in &listen {
            if let Listen::Tcp(address) = listen
                && !address.ip().is_loopback()
                && tls.is_none()
            {
                return Err(Failure::usage(format!(
                    "beyond this machine NBD needs TLS: add --tls-cert and --tls-key, or use a \
                     loopback address, address={address}"
                )));
            }
        }
        let metrics = args.metrics.as_deref().map(address).transpose()?;
        if let Some(address) = metrics.filter(|address| !address.ip().is_loopback()) {
            return Err(Failure::usage(format!(
                "metrics are served on a loopback address only, address={address}"
            )));
        }
        Ok(Self {
            vm: args.vm.clone(),
            folder,
            disks,
            listen,
            control,
            metrics,
            tls,
            options: FileOptions::default()
                .with_direct(args.direct.into())
                .with_engine(args.engine.into())
                .with_read_only(args.read_only),
        })
    }
}

impl Listen {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) | Self::Passed(_) => None,
        }
    }
}

/// With no disk given: a disk and sockets in [`DATA_DIR`]. Returns the folder to make.
fn defaults(args: &mut ServeArgs) -> Option<PathBuf> {
    if !args.disks.is_empty() {
        return None;
    }
    let folder = PathBuf::from(DATA_DIR);
    args.disks.push(format!("{DATA_DIR}/disk.img"));
    args.create.get_or_insert(DATA_DISK_BYTES);
    if args.nbd.is_empty() {
        args.nbd.push(format!("{DATA_DIR}/nbd.sock"));
    }
    args.control
        .get_or_insert_with(|| folder.join("control.sock"));
    Some(folder)
}

/// Where the filters of a disk come from.
enum FilterChoice {
    /// Nothing was said.
    Default,
    Same(Policy),
    File(PolicyFile),
}

impl FilterChoice {
    fn new(args: &ServeArgs, registry: &FilterRegistry) -> Outcome<Self> {
        if let Some(path) = &args.policy {
            let file = PolicyFile::read(path, registry).at(Stage::Usage)?;
            return Ok(Self::File(file));
        }
        if args.filters.len() > 1 && args.filters.iter().any(|text| text == filter_arg::NONE) {
            return Err(Failure::usage(
                "--filter none stands alone: leave it out, or leave the other filters out",
            ));
        }
        let Some(mut filters) = cli::filters(args).at(Stage::Filter)? else {
            return Ok(Self::Default);
        };
        for filter in &mut filters {
            device_size::fold_known(filter, registry).at(Stage::Filter)?;
        }
        Ok(Self::Same(Policy { filters }))
    }

    fn of(
        &self,
        args: &ServeArgs,
        disk: &str,
        spec: &Spec,
        registry: &FilterRegistry,
    ) -> Outcome<Policy> {
        match self {
            Self::Default => default_policy(args, spec, registry),
            Self::Same(policy) => Ok(policy.clone()),
            Self::File(file) => file.of(&args.vm, disk).at(Stage::Usage),
        }
    }
}

/// A cache beside a disk that is a file, where the program knows the cache and may write.
fn default_policy(args: &ServeArgs, spec: &Spec, registry: &FilterRegistry) -> Outcome<Policy> {
    let Spec::File(path) = spec else {
        return Ok(Policy::empty());
    };
    if is_block_device(path) || args.read_only || registry.get(vaio_cache::NAME).is_err() {
        return Ok(Policy::empty());
    }
    let found = std::fs::metadata(path).map(|found| found.len()).ok();
    let capacity = found.or(args.create).unwrap_or_default();
    let cache = with_suffix(path, default_filter::SUFFIX);
    let mut filter = default_filter::cache_in(&cache, capacity);
    device_size::fold_known(&mut filter, registry).at(Stage::Filter)?;
    Ok(Policy::empty().with(filter))
}

fn disk_plans(
    args: &ServeArgs,
    folder: Option<&Path>,
    filters: &FilterChoice,
    registry: &FilterRegistry,
) -> Outcome<Vec<DiskPlan>> {
    if !args.names.is_empty() && args.names.len() != args.disks.len() {
        return Err(Failure::usage(format!(
            "--name is given as often as there are disks, names={} disks={}",
            args.names.len(),
            args.disks.len()
        )));
    }
    if let Some(size) = args.create {
        check_size(size)?;
    }
    let mut plans: Vec<DiskPlan> = Vec::with_capacity(args.disks.len());
    for (index, text) in args.disks.iter().enumerate() {
        let spec = parse_spec(text, folder)?;
        let name = match args.names.get(index) {
            Some(name) => name.clone(),
            None => name_of(&spec),
        };
        check_name(&name, text)?;
        if plans
            .iter()
            .any(|other| other.spec == spec && matches!(spec, Spec::File(_) | Spec::Nbd(_)))
        {
            return Err(Failure::usage(format!(
                "the same disk is given twice, disk={text}"
            )));
        }
        if plans.iter().any(|other| other.name == name) {
            return Err(Failure::usage(format!(
                "two disks have the same name: give each a --name, name={name} disk={text}"
            )));
        }
        let policy = filters.of(args, &name, &spec, registry)?;
        let resolved = filter_arg::check(&policy, registry).at(Stage::Filter)?;
        let sidecar = sidecar_path(args, &spec, &name, &resolved)?;
        plans.push(DiskPlan {
            create: args.create.filter(|_| is_missing_file(&spec)),
            name,
            spec,
            text: text.clone(),
            policy,
            sidecar,
        });
    }
    Ok(plans)
}

/// Reads a disk's spec. A file's path is made canonical: whatever path it is reached by, it is
/// the same disk with the same sidecar.
pub(crate) fn parse_spec(text: &str, folder: Option<&Path>) -> Outcome<Spec> {
    let spec: Spec = text.parse().map_err(|error: Error| {
        // A URI names a disk that this program cannot open; all else is a slip of the pen.
        let stage = if text.contains("://") {
            Stage::Disk
        } else {
            Stage::Usage
        };
        Failure::new(
            stage,
            Error::config(format!("{}, disk={text}", error.to_line())),
        )
    })?;
    let Spec::File(path) = spec else {
        return Ok(spec);
    };
    let canonical = match path.canonicalize() {
        Ok(canonical) => canonical,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && folder.is_none() => {
            let (parent, name) = (parent_of(&path), path.file_name());
            let parent = parent.canonicalize().map_err(|cause| {
                let text = format!("no such folder to hold the disk, path={}", path.display());
                Failure::new(Stage::Disk, Error::config(text).with_source(cause))
            })?;
            name.map_or_else(|| path.clone(), |name| parent.join(name))
        }
        // Opening says what is wrong with it, or its folder is still to be made.
        Err(_) => path,
    };
    Ok(Spec::File(canonical))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_missing_file(spec: &Spec) -> bool {
    matches!(spec, Spec::File(path) if std::fs::symlink_metadata(path)
        .is_err_and(|cause| cause.kind() == io::ErrorKind::NotFound))
}

fn check_size(size: u64) -> Outcome<()> {
    if size == 0 || !size.is_multiple_of(BLOCK_MIN) || size > DeviceInfo::CAPACITY_MAX {
        let text = format!(
            "a disk's size is a multiple of {BLOCK_MIN} bytes, at least one and at most 8 EiB, \
             create={size}"
        );
        return Err(Failure::new(Stage::Disk, Error::config(text)));
    }
    Ok(())
}

pub(crate) fn name_of(spec: &Spec) -> String {
    match spec {
        Spec::File(path) => path
            .file_stem()
            .map_or_else(|| "disk".into(), |stem| stem.to_string_lossy().into_owned()),
        Spec::Ram(_) => "ram".into(),
        Spec::Null(_) => "null".into(),
        Spec::Nbd(uri) if !uri.export.is_empty() => uri.export.replace('/', "-"),
        Spec::Nbd(_) => "disk".into(),
    }
}

fn check_name(name: &str, disk: &str) -> Outcome<()> {
    let is_fine = !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.contains('/')
        && !name.chars().any(char::is_control);
    if is_fine {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "a disk's name has 1 to {NAME_MAX} bytes without `/`: give it a --name, name={name:?} disk={disk}"
    )))
}

/// Where a disk's sidecar lives: beside a file, else in the state folder, else in memory, which
/// only a stack may have that keeps nothing beyond the process.
fn sidecar_path(
    args: &ServeArgs,
    spec: &Spec,
    name: &str,
    resolved: &[Resolved],
) -> Outcome<Option<PathBuf>> {
    if let Some(folder) = &args.state_dir {
        if !folder.is_dir() {
            return Err(Failure::usage(format!(
                "the state folder is missing: make it first, path={}",
                folder.display()
            )));
        }
        return Ok(Some(folder.join(format!("{name}.vaio"))));
    }
    match spec {
        Spec::File(path) if !is_block_device(path) => Ok(Some(with_suffix(path, "vaio"))),
        Spec::Ram(_) | Spec::Null(_) => Ok(None),
        _ => {
            let keeps = resolved
                .iter()
                .find(|one| one.descriptor.content != Content::Unchanged);
            match keeps {
                None => Ok(None),
                Some(one) => Err(Failure::new(
                    Stage::Filter,
                    Error::config(format!(
                        "what this filter keeps must be remembered, and the disk is no file: add \
                         --state-dir DIR, disk={name}"
                    ))
                    .with_filter(one.descriptor.name),
                )),
            }
        }
    }
}

fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// `PATH.SUFFIX`.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// A file beside a disk that is a file.
pub(crate) fn beside(disk: &DiskPlan, suffix: &str) -> Option<PathBuf> {
    match &disk.spec {
        Spec::File(path) if !is_block_device(path) => Some(with_suffix(path, suffix)),
        _ => None,
    }
}

fn listen(args: &ServeArgs, disks: &[DiskPlan]) -> Outcome<Vec<Listen>> {
    let mut listen = Vec::new();
    for text in &args.nbd {
        listen.push(if text.contains(':') && !text.contains('/') {
            Listen::Tcp(address(text)?)
        } else {
            Listen::Unix(text.into())
        });
    }
    if let Some(socket) = systemd::passed_socket().at(Stage::Usage)? {
        listen.push(Listen::Passed(socket));
    }
    if listen.is_empty() {
        let socket = beside(&disks[0], "nbd").ok_or_else(|| {
            Failure::usage("say where NBD clients connect: add --nbd SOCKET or --nbd ADDRESS:PORT")
        })?;
        listen.push(Listen::Unix(socket));
    }
    Ok(listen)
}

fn address(text: &str) -> Outcome<SocketAddr> {
    let bad = || {
        Failure::usage(format!(
            "not an address: write ADDRESS:PORT, or ./PATH for a socket file, address={text}"
        ))
    };
    text.to_socket_addrs()
        .map_err(|_| bad())?
        .next()
        .ok_or_else(bad)
}

/// Refuses a socket's path that cannot be listened on. `to_be_made` is a folder that will exist.
fn check_socket(path: &Path, to_be_made: Option<&Path>) -> Outcome<()> {
    let at = path.display();
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(Failure::usage(format!(
            "a Unix socket's path has at most {SOCKET_PATH_MAX} bytes: give a shorter one, \
             socket={at} bytes={len}"
        )));
    }
    let parent = parent_of(path);
    if !parent.is_dir() && Some(parent) != to_be_made {
        return Err(Failure::usage(format!(
            "no such folder to hold the socket, socket={at}"
        )));
    }
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => Err(Failure::usage(format!(
            "something that is no socket is in the way, socket={at}"
        ))),
        // One that no one listens on is left over, and will be replaced.
        Ok(_) => match UnixStream::connect(path) {
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            _ => Err(Failure::new(
                Stage::Disk,
                Error::new(
                    ErrorKind::Busy,
                    format!("socket in use: another program listens on it, socket={at}"),
                ),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{exit::Exit, testing::registry};

    fn plan(args: &[&str]) -> Outcome<Plan> {
        let line = ["vaio", "serve"].iter().chain(args);
        match cli::parse(line.copied()).expect("a command line").command {
            cli::Command::Serve(args) => Plan::new(&args, &registry()),
            other => panic!("{other:?}"),
        }
    }

    fn mistake(args: &[&str]) -> (Exit, String) {
        let failure = plan(args).expect_err("a mistake");
        (failure.exit(), failure.to_string())
    }

    #[test]
    fn nothing_given_is_a_disk_in_the_data_folder() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.folder.as_deref(), Some(Path::new(DATA_DIR)));
        assert_eq!(plan.disks[0].create, Some(1 << 30));
        assert_eq!(plan.disks[0].name, "disk");
        assert_eq!(
            plan.control.as_deref(),
            Some(Path::new("vaio-data/control.sock"))
        );
    }

    #[test]
    fn disks_get_their_names_sockets_and_sidecars() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a.img");
        let text = path.to_str().unwrap();
        let plan = plan(&[text, "--disk", "ram:1M", "--create", "1M"]).unwrap();
        assert_eq!(plan.disks[0].name, "a");
        assert_eq!(plan.disks[0].create, Some(1 << 20));
        assert_eq!(
            plan.disks[0].sidecar,
            Some(dir.path().canonicalize().unwrap().join("a.img.vaio"))
        );
        assert_eq!(plan.disks[1].name, "ram");
        assert_eq!(plan.disks[1].create, None);
        assert_eq!(
            plan.listen[0].path(),
            Some(Path::new(&format!("{text}.nbd")))
        );
        assert_eq!(plan.control, Some(format!("{text}.control").into()));
        assert_eq!(
            dir.path().read_dir().unwrap().count(),
            0,
            "nothing was made"
        );
    }

    #[test]
    fn disk_without_a_word_about_filters_gets_a_cache_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        let a = at("a.img").display().to_string();
        let filters = |args: &[&str]| {
            let line = ["vaio", "serve", &a, "--create", "1G"];
            let line = line.iter().chain(args).copied();
            match cli::parse(line).expect("a command line").command {
                cli::Command::Serve(args) => {
                    let plan = Plan::new(&args, &crate::default_registry()).unwrap();
                    plan.disks[0].policy.filters.clone()
                }
                other => panic!("{other:?}"),
            }
        };
        let cache = filters(&[]);
        assert_eq!(cache.len(), 1);
        assert_eq!(cache[0].name, "cache");
        assert_eq!(
            cache[0].settings["file"],
            format!("make:134217728:{a}.cache")
        );
        std::fs::write(at("a.img.cache"), "x").unwrap();
        assert_eq!(filters(&[])[0].settings["file"], format!("{a}.cache"));
        assert!(filters(&["--filter", "none"]).is_empty());
        assert!(filters(&["--read-only"]).is_empty());
        let given = filters(&["--filter", "cache:file=x,size=1M"]);
        assert_eq!(given[0].settings["file"], "make:1048576:x");
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_mistake_has_its_code_and_words() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("a.img"), [0; 512]).unwrap();
        let (a, long) = (at("a.img"), at(&"x".repeat(100)));
        let nbd = ["--nbd", "127.0.0.1:0"];
        for (args, exit, words) in [
            (&["null:many", nbd[0], nbd[1]][..], Exit::Usage, "null:many"),
            (
                &["nbd+carrier://x/y", nbd[0], nbd[1]],
                Exit::Disk,
                "nbd+carrier",
            ),
            (&["null:1M"], Exit::Usage, "--nbd"),
            (&[&a, &a], Exit::Usage, "a.img"),
            (&["ram:1M", "ram:2M", nbd[0], nbd[1]], Exit::Usage, "--name"),
            (
                &[&a, "--name", "x", "--name", "y"],
                Exit::Usage,
                "names=2 disks=1",
            ),
            (&[&a, "--name", "x/y"], Exit::Usage, "x/y"),
            (&[&a, "--create", "1000"], Exit::Disk, "multiple"),
            (&[&at("no/such"), "--create", "1M"], Exit::Disk, "no/such"),
            (&[&a, "--filter", "nix"], Exit::Filter, "nix"),
            (&[&a, "--filter", "test:hue=1"], Exit::Filter, "hue"),
            (&[&a, "--filter", "test:count"], Exit::Filter, "count"),
            (
                &[&a, "--filter", "none", "--filter", "test"],
                Exit::Usage,
                "none",
            ),
            (&[&a, "--policy", &at("no.toml")], Exit::Usage, "no.toml"),
            (
                &[&a, "--nbd", "localhost:zero"],
                Exit::Usage,
                "localhost:zero",
            ),
            (&[&a, "--nbd", "192.0.2.1:1"], Exit::Usage, "--tls-cert"),
            (&[&a, "--nbd", &a], Exit::Usage, "no socket"),
            (&[&a, "--nbd", &long], Exit::Usage, "107"),
            (
                &[&a, "--nbd", &at("no/such")],
                Exit::Usage,
                "no such folder",
            ),
            (
                &[&a, "--nbd", &at("s"), "--control", &at("s")],
                Exit::Usage,
                "two paths",
            ),
            (&[&a, "--state-dir", &at("no")], Exit::Usage, "state folder"),
            (&[&a, "--metrics", "192.0.2.1:1"], Exit::Usage, "loopback"),
            (
                &[&a, "--tls-cert", &a, "--tls-key", &a],
                Exit::Usage,
                "a.img",
            ),
            (
                &["nbd://h/x", nbd[0], nbd[1], "--filter", "keeps"],
                Exit::Filter,
                "--state-dir",
            ),
        ] {
            let (code, line) = mistake(args);
            assert_eq!(code, exit, "{args:?}: {line}");
            assert!(line.contains(words), "{args:?}: {line}");
        }
        assert_eq!(
            dir.path().read_dir().unwrap().count(),
            1,
            "nothing was made"
        );
    }
}
