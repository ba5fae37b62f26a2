//! A host that answers from memory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use diag::{Error, Result};
use llb::{Graph, Op};
use oci::{Platform, Reference};
use serde_json::Value;

use crate::{FileStat, Host, OciStore, RefId, ResolvedImage, Warning};

/// Files by local directory and path, images by name and platform.
#[derive(Default)]
pub(super) struct MemoryHost {
    pub(super) files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub(super) images: BTreeMap<String, Value>,
    pub(super) inputs: BTreeMap<String, Graph>,
    pub(super) warnings: Mutex<Vec<Warning>>,
    /// What was asked, in order.
    pub(super) asked: Mutex<Vec<String>>,
}

impl MemoryHost {
    /// A host with a Dockerfile and the recorded images.
    pub(super) fn with_dockerfile(text: &str) -> Self {
        let mut host = MemoryHost::default();
        host.file("dockerfile", "Dockerfile", text.as_bytes());
        host.images = super::recorded::images();
        host
    }

    pub(super) fn file(&mut self, local: &str, path: &str, data: &[u8]) {
        self.files
            .entry(local.to_owned())
            .or_default()
            .insert(path.to_owned(), data.to_vec());
    }

    fn note(&self, text: String) {
        self.asked.lock().unwrap().push(text);
    }
}

#[async_trait]
impl Host for MemoryHost {
    fn worker_platforms(&self) -> Vec<Platform> {
        vec![
            "linux/amd64".parse().unwrap(),
            "linux/arm64".parse().unwrap(),
        ]
    }

    fn session_id(&self) -> String {
        "session".to_owned()
    }

    async fn resolve_image(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        _mode: &str,
        log_name: &str,
    ) -> Result<ResolvedImage> {
        self.note(log_name.to_owned());
        let name = reference.to_string();
        let platform = platform.map_or("linux/amd64".to_owned(), ToString::to_string);
        let Some(image) = self.images.get(&name) else {
            return Err(Error::new(
                diag::Code::Unknown,
                format!("failed to resolve source metadata for {name}: {name}: not found"),
            ));
        };
        let config = image["configs"]
            .get(&platform)
            .unwrap_or(&image["configs"]["linux/amd64"]);
        Ok(ResolvedImage {
            digest: Some(image["digest"].as_str().unwrap().parse().unwrap()),
            config: serde_json::to_vec(config).unwrap(),
            reference: reference.clone(),
        })
    }

    async fn resolve_oci_layout(
        &self,
        reference: &Reference,
        store: &OciStore,
        _platform: Option<&Platform>,
        log_name: &str,
    ) -> Result<ResolvedImage> {
        self.note(format!("{log_name} from {}", store.store_id));
        let image = &self.images["docker.io/library/busybox:latest"];
        Ok(ResolvedImage {
            digest: reference.digest(),
            config: serde_json::to_vec(&image["configs"]["linux/amd64"]).unwrap(),
            reference: reference.clone(),
        })
    }

    async fn solve(&self, graph: Graph) -> Result<RefId> {
        let root = graph.root.unwrap();
        let vertex = graph.vertex(&root.vertex).unwrap();
        self.note(vertex.name());
        match &vertex.op {
            Op::Source(source) => {
                let name = source.identifier.strip_prefix("local://");
                Ok(RefId(name.unwrap_or(&source.identifier).to_owned()))
            }
            _ => Ok(RefId("made".to_owned())),
        }
    }

    async fn read_file(&self, reference: &RefId, path: &str) -> Result<Vec<u8>> {
        let found = self
            .files
            .get(&reference.0)
            .and_then(|files| files.get(path));
        found
            .cloned()
            .ok_or_else(|| Error::not_found(format!("open {path}: no such file or directory")))
    }

    async fn stat_file(&self, _reference: &RefId, path: &str) -> Result<FileStat> {
        Err(Error::not_found(path))
    }

    async fn read_dir(&self, _reference: &RefId, _path: &str) -> Result<Vec<FileStat>> {
        Ok(Vec::new())
    }

    async fn warn(&self, warning: Warning) {
        self.warnings.lock().unwrap().push(warning);
    }

    async fn inputs(&self) -> Result<BTreeMap<String, Graph>> {
        Ok(self.inputs.clone())
    }
}
