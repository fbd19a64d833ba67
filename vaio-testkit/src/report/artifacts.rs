//! [`Artifacts`]: the files that a failure leaves, under names that stay the same for the same
//! plan.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Where files go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifacts {
    folder: PathBuf,
}

/// The files of one failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The plan; what `VAIO_PLAN` wants.
    pub plan: PathBuf,
    /// What was printed.
    pub text: PathBuf,
    /// The page.
    pub page: PathBuf,
    /// Every event, a JSON object in each line.
    pub events: PathBuf,
}

impl Paths {
    /// All of them.
    pub fn all(&self) -> [&Path; 4] {
        [&self.plan, &self.text, &self.page, &self.events]
    }
}

impl Artifacts {
    /// Under `VAIO_ARTIFACTS`; else `vaio` in the target folder of this build; else `target/vaio`
    /// in `folder`.
    pub fn from_env(folder: impl AsRef<Path>) -> Self {
        let given = env::var_os("VAIO_ARTIFACTS").filter(|path| !path.is_empty());
        let folder = match given {
            Some(path) => PathBuf::from(path),
            None => target()
                .unwrap_or_else(|| folder.as_ref().join("target"))
                .join("vaio"),
        };
        Self::at(folder)
    }

    /// In this folder, which need not exist.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        // A plan's path is copied into a shell that stands elsewhere.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Self { folder }
    }

    /// The files of a failure: named by its case, and a hash of the test's path and of what
    /// makes it fail: its plan, or its seed.
    pub fn paths(&self, case: &str, test: &str, key: &str) -> Paths {
        let case: String = case
            .replace("::", "-")
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let stem = format!("{case}-{:08x}", hash(&format!("{test}\n{key}")));
        let path = |end: &str| self.folder.join(format!("{stem}.{end}"));
        Paths {
            plan: path("vaio"),
            text: path("txt"),
            page: path("html"),
            events: path("jsonl"),
        }
    }

    /// Writes one file; gives back what went wrong, if anything did.
    #[must_use]
    pub fn write(&self, path: &Path, content: &str) -> Option<String> {
        let written = fs::create_dir_all(&self.folder).and_then(|()| fs::write(path, content));
        let error = written.err()?;
        Some(format!("cannot write {}: {error}", path.display()))
    }
}

/// The target folder that this test was built in: the nearest one that cargo marked.
fn target() -> Option<PathBuf> {
    let exe = env::current_exe().ok()?;
    exe.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
}

/// FNV-1a: the same in every build.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
