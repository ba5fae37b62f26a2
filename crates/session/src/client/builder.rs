//! Putting a session together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use docker_config::DockerConfig;

use super::ClientSession;
use super::auth::{AuthOptions, AuthService};
use super::content::{ContentService, FillStore, Store};
use super::file_send::{ExportTarget, FileSendService};
use super::file_sync::{FileSyncService, LocalDir};
use super::health::HealthService;
use super::raw_service::RawService;
use super::router::Router;
use super::secrets::{SecretSource, SecretsService};
use super::ssh::{SshAgent, SshService};
use super::upload::{UploadService, Uploads};
use crate::caller::EXPORT_STORE;
use crate::headers::SessionHeaders;
use crate::in_place::SharedDir;

/// What a session offers. Nothing is offered that was not given.
#[derive(Default)]
pub struct ClientSessionBuilder {
    shared_key: String,
    name: String,
    local_dirs: BTreeMap<String, LocalDir>,
    in_place: bool,
    auth: Option<AuthOptions>,
    secrets: Option<BTreeMap<String, SecretSource>>,
    ssh: Vec<SshAgent>,
    exports: BTreeMap<usize, ExportTarget>,
    uploads: Option<Uploads>,
    stores: BTreeMap<String, Store>,
}

impl ClientSessionBuilder {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A key that stays the same for the same context, so that the server finds what it has of it.
    #[must_use]
    pub fn shared_key(mut self, key: impl Into<String>) -> Self {
        self.shared_key = key.into();
        self
    }

    /// A name for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Directories that may be read, by the names the server asks with (`context`, `dockerfile`).
    #[must_use]
    pub fn local_dirs(mut self, dirs: BTreeMap<String, LocalDir>) -> Self {
        self.local_dirs.extend(dirs);
        self
    }

    /// Lets a server that runs on this machine, as this user, read the directories in place. To be
    /// said only when the session is opened to such a server: what it is told are our paths.
    #[must_use]
    pub fn in_place(mut self, in_place: bool) -> Self {
        self.in_place = in_place;
        self
    }

    /// Registry credentials as Docker has them configured.
    #[must_use]
    pub fn auth(self, config: DockerConfig) -> Self {
        self.auth_with(AuthOptions::new(config))
    }

    /// The same with options.
    #[must_use]
    pub fn auth_with(mut self, options: AuthOptions) -> Self {
        self.auth = Some(options);
        self
    }

    /// Secrets by id.
    #[must_use]
    pub fn secrets(mut self, secrets: BTreeMap<String, SecretSource>) -> Self {
        self.secrets.get_or_insert_default().extend(secrets);
        self
    }

    /// SSH agents and sockets.
    #[must_use]
    pub fn ssh(mut self, agents: Vec<SshAgent>) -> Self {
        self.ssh.extend(agents);
        self
    }

    /// Where the result of the exporter of that number goes.
    #[must_use]
    pub fn file_target(mut self, exporter: usize, target: ExportTarget) -> Self {
        self.exports.insert(exporter, target);
        self
    }

    /// Streams that the server reads through URLs, such as a context from stdin.
    #[must_use]
    pub fn uploads(mut self, uploads: Uploads) -> Self {
        self.uploads = Some(uploads);
        self
    }

    /// OCI layout directories, by the id that the server asks with.
    #[must_use]
    pub fn oci_layouts(mut self, layouts: BTreeMap<String, PathBuf>) -> Self {
        let stores = layouts.into_iter();
        self.stores
            .extend(stores.map(|(id, directory)| (id, Store::to_read(directory))));
        self
    }

    /// An OCI layout directory, by the id that the server asks with, in which not all blobs need be
    /// there: the first that is missed has `fill` called.
    #[must_use]
    pub fn oci_layout_to_fill(mut self, id: String, directory: PathBuf, fill: FillStore) -> Self {
        self.stores.insert(id, Store::to_fill(directory, fill));
        self
    }

    /// The directory whose content store takes what is exported with `tar=false`.
    #[must_use]
    pub fn export_layout(mut self, directory: PathBuf) -> Self {
        self.stores
            .insert(EXPORT_STORE.to_owned(), Store::to_write(directory));
        self
    }

    /// The session, with an id of its own.
    pub fn build(self) -> ClientSession {
        let mut router = Router::default();
        let dirs = self.local_dirs.iter().filter(|_| self.in_place);
        let local_dirs = dirs
            .filter_map(|(name, dir)| Some((name.clone(), SharedDir::of(&dir.path).ok()?)))
            .collect();
        let mut methods = BTreeSet::new();
        let mut offer =
            |names: &[&str]| methods.extend(names.iter().map(|name| (*name).to_owned()));
        router.add(HealthService::server());
        offer(&[
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
        ]);
        if !self.local_dirs.is_empty() {
            router.add(RawService(FileSyncService::new(self.local_dirs)));
            offer(&FileSyncService::METHODS);
        }
        if !self.exports.is_empty() {
            router.add(RawService(FileSendService::new(self.exports)));
            offer(&FileSendService::METHODS);
        }
        if let Some(auth) = self.auth {
            router.add(AuthService::server(auth));
            offer(&AuthService::METHODS);
        }
        if let Some(secrets) = self.secrets {
            router.add(SecretsService::server(secrets));
            offer(&SecretsService::METHODS);
        }
        if !self.ssh.is_empty() {
            router.add(SshService::server(self.ssh));
            offer(&SshService::METHODS);
        }
        if let Some(uploads) = self.uploads {
            router.add(RawService(UploadService::new(uploads)));
            offer(&UploadService::METHODS);
        }
        if !self.stores.is_empty() {
            router.add(ContentService::server(self.stores));
            offer(&ContentService::METHODS);
        }
        ClientSession {
            headers: Arc::new(SessionHeaders {
                id: new_id(),
                name: self.name,
                shared_key: self.shared_key,
                methods,
                local_dirs,
            }),
            router,
        }
    }
}

/// 25 characters of base 36, as stock ids are.
pub(crate) fn new_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut number: u128 = rand::random();
    let mut id = String::with_capacity(25);
    for _ in 0..25 {
        id.push(DIGITS[(number % 36) as usize] as char);
        number /= 36;
    }
    id
}
