//! `Context`: how a client reaches a cluster, as a file; and the pointer to the running dev cluster's.

use std::io;
use std::path::{Path, PathBuf};

use dunlin_protocol::{ClusterId, Status};
use serde::{Deserialize, Serialize};

use super::failure::Failure;

/// The file `context.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// The cluster's id, 32 hex digits; without it, whichever cluster answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// The CA's certificate: PEM text, or the path of a file that holds it, relative to the context's folder.
    pub(crate) ca: String,
    /// Some nodes' addresses, `host:port`.
    pub(crate) nodes: Vec<String>,
    /// The largest UDP payload tried. Above 1,452 only where the whole way takes it, as loopback does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_mtu: Option<u16>,
}

impl Context {
    /// Reads and checks a file; the CA is PEM text afterwards.
    pub(crate) fn load(file: &Path) -> Result<Self, Failure> {
        let wrong =
            |what: String| Failure::new(Status::InvalidConfig, format!("the context {}: {what}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let mut context: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        if context.nodes.is_empty() {
            return Err(wrong("`nodes` names no address".to_owned()));
        }
        context.cluster().map_err(wrong)?;
        if context.max_mtu.is_some_and(|mtu| !(1_200..=6_500).contains(&mtu)) {
            return Err(wrong("`max_mtu` lies between 1,200 and 6,500".to_owned()));
        }
        if !context.ca.contains("-----BEGIN") {
            let path = file.parent().unwrap_or(Path::new("")).join(&context.ca);
            context.ca = std::fs::read_to_string(&path)
                .map_err(|e| wrong(format!("`ca` names {}, which cannot be read: {e}", path.display())))?;
        }
        Ok(context)
    }

    /// The cluster's id.
    pub(crate) fn cluster(&self) -> Result<Option<ClusterId>, String> {
        let Some(text) = &self.cluster else { return Ok(None) };
        match u128::from_str_radix(text, 16) {
            Ok(id) if text.len() == 32 => Ok(Some(ClusterId(id))),
            _ => Err(format!("`cluster` is `{text}`, not 32 hex digits")),
        }
    }
}

/// The context to use: the one named, or the running dev cluster's.
pub(crate) fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    for folder in pointer_folders() {
        if let Ok(path) = std::fs::read_to_string(folder.join(POINTER)) {
            return Ok(PathBuf::from(path.trim_end_matches('\n')));
        }
    }
    let message =
        "no cluster is known: start one with `dunlin dev`, or name a context with --context FILE or DUNLIN_CONTEXT";
    Err(Failure::new(Status::Connect, message))
}

const POINTER: &str = "context";

/// Where the pointer may lie, the best place first.
fn pointer_folders() -> Vec<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let runtime = of("XDG_RUNTIME_DIR").map(|folder| folder.join("dunlin"));
    let state = of("HOME").map(|home| home.join(".local/state/dunlin"));
    runtime.into_iter().chain(state).collect()
}

/// Names the running dev cluster's context, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Pointer {
    file: PathBuf,
    context: PathBuf,
}

impl Pointer {
    /// Points to `context` from the first place that can be written.
    pub(crate) fn set(context: &Path) -> Result<Self, Failure> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "neither XDG_RUNTIME_DIR nor HOME is set");
        for folder in pointer_folders() {
            match write(&folder, context) {
                Ok(file) => return Ok(Self { file, context: context.to_owned() }),
                Err(error) => failed = error,
            }
        }
        Err(Failure::local(format!("cannot note which cluster runs: {failed}")))
    }
}

impl Drop for Pointer {
    fn drop(&mut self) {
        // Another cluster may have been started since: its pointer stays.
        let ours = self.context.to_string_lossy();
        if std::fs::read_to_string(&self.file).is_ok_and(|text| text.trim_end_matches('\n') == ours) {
            // What is left behind names a cluster that does not answer, which is said then.
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

fn write(folder: &Path, context: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let (file, next) = (folder.join(POINTER), folder.join(format!("{POINTER}.{}", std::process::id())));
    std::fs::write(&next, format!("{}\n", context.display()))?;
    std::fs::rename(&next, &file)?;
    Ok(file)
}
