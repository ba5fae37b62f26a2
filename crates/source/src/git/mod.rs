//! A commit of a git repository as a layer.
//!
//! Repositories are spoken to by the `git` program, or, where that or its `ssh` is missing, by [`builtin`]. Of each
//! remote a bare repository is kept, so that only new objects travel; each commit that was fetched has
//! a reference of its own there, which keeps it whatever the remote does with its branches and tags.
//!
//! ```text
//! <dir>/superblock
//! <dir>/<sha256 of remote and object format>.git/     what the program fetched from a remote
//! <dir>/<sha256 of remote and object format>.packs/   what was fetched without it
//! <dir>/<...>.tmp/                                    repositories of a single checkout
//! ```
//!
//! **Invariants**: a repository is used by one build at a time; the program asks nobody anything and
//! ends when nobody waits for it. What is fetched is the commit that was pinned, or an error.

mod builtin;
mod checkout;
mod command;
mod kept;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use diag::{Code, Error, Result};
use layers::{LayerHold, LayerNote, LayerStack, LayerStore, RecordType};
use oci::Digest;
use tokio::sync::OwnedMutexGuard;

use crate::flights::Flights;
use crate::resolve::blocking;
use builtin::Builtin;
use checkout::Checkout;
use command::{Git, Place, is_installed};

pub use command::{GitAccess, GitLog};
pub use kept::KeptRepository;

/// Version of the directory's format.
const FORMAT: u32 = 1;

/// Repositories that were not fetched from for so long are removed when a server starts.
const UNUSED_MAX: Duration = Duration::from_secs(14 * 24 * 3600);

/// Marks a repository that is set up.
const READY: &str = "cooperage-ready";

/// Says in a repository where it comes from, without secrets.
const ADDRESS: &str = "cooperage-remote";

/// Which commit, and what is made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitRequest {
    /// The address as git takes it.
    pub remote: String,
    /// A commit, tag or branch; empty for the default branch.
    pub reference: String,
    /// The beginning of the commit that it must be; empty for any.
    pub checksum: String,
    /// The directory of the repository that is wanted; empty for all.
    pub subdir: String,
    /// Whether `.git` is part of the result.
    pub keep_git_dir: bool,
    /// Whether submodules are left out.
    pub skip_submodules: bool,
    /// Whether files have the time of the commit and not that of the checkout.
    pub commit_times: bool,
    /// Whether the checksum is fetched without asking what the reference is.
    pub fetch_by_commit: bool,
    /// Keys of hosts, as in `known_hosts`; empty to trust every host.
    pub known_hosts: String,
}

/// What a request stands for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitPin {
    /// The full name of the branch or tag; the commit itself if that was asked for.
    pub reference: String,
    /// The object it names: a commit or an annotated tag.
    pub object: String,
    /// The commit of an annotated tag.
    pub commit: Option<String>,
}

/// The objects of git by which a request was pinned, as they are in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitObjects {
    /// Name of the commit.
    pub commit_id: String,
    /// Content of the commit object.
    pub commit: Vec<u8>,
    /// Content of the tag object, for an annotated tag.
    pub tag: Option<Vec<u8>>,
}

/// Takes commits of repositories; clones share what is under way.
#[derive(Clone)]
pub struct GitSource {
    dir: PathBuf,
    layers: LayerStore,
    program: OsString,
    ssh_program: OsString,
    client: reqwest::Client,
    flights: Arc<Flights<Digest>>,
}

impl GitSource {
    /// Opens the directory of repositories, making it if needed; what is unfinished or was not used
    /// for long is removed.
    pub fn open(dir: impl Into<PathBuf>, layers: LayerStore) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        content::check_superblock(&dir, FORMAT)?;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() && !is_used(&path) {
                std::fs::remove_dir_all(&path)?;
            }
        }
        Ok(GitSource {
            dir,
            layers,
            program: "git".into(),
            ssh_program: "ssh".into(),
            client: registry::web_client()?,
            flights: Arc::default(),
        })
    }

    /// The same with another program for git; if there is no such program, git is done without one.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<OsString>) -> Self {
        self.program = program.into();
        self
    }

    /// The same with another name for the program by which git reaches hosts over ssh; if there is no
    /// such program, what is there is fetched without git's either.
    #[must_use]
    pub fn with_ssh_program(mut self, program: impl Into<OsString>) -> Self {
        self.ssh_program = program.into();
        self
    }

    /// Finds out which commit is meant: the remote is asked unless the request says it.
    ///
    /// # Errors
    /// What git says, and references that are not there or not what was expected.
    pub async fn pin(&self, request: &GitRequest, access: &GitAccess) -> Result<GitPin> {
        request.check()?;
        if let Some(pin) = request.pinned()? {
            return Ok(pin);
        }
        if let Some(builtin) = self.builtin(request, access) {
            let pin = builtin.pin().await?;
            request.check_pin(&pin)?;
            return Ok(pin);
        }
        let git = self.git(request, access)?;
        let shown = diag::redact_url(&request.remote);
        let place = Place::default();
        let reference = match request.reference.as_str() {
            "" => {
                let args = ["ls-remote", "--symref", "--", &request.remote, "HEAD"];
                let said = git.run(&place, &args).await.map_err(|error| {
                    error.context(format!(
                        "error fetching default branch for repository {shown}"
                    ))
                })?;
                default_branch(&said).ok_or_else(|| {
                    let text = format!("could not find default branch for repository: {shown}");
                    Error::not_found(text)
                })?
            }
            reference => reference.to_owned(),
        };
        let peeled = format!("{reference}^{{}}");
        let args = ["ls-remote", "--", &request.remote, &reference, &peeled];
        let said = git
            .run(&place, &args)
            .await
            .map_err(|error| error.context(format!("failed to fetch remote {shown}")))?;
        let pin = choose(&reference, &said)?;
        request.check_pin(&pin)?;
        Ok(pin)
    }

    /// The files of the commit as a layer.
    ///
    /// # Errors
    /// What git says, and files that are not as asked for.
    pub async fn fetch(
        &self,
        request: &GitRequest,
        pin: &GitPin,
        access: &GitAccess,
    ) -> Result<(LayerStack, LayerHold)> {
        let layers = self.layers.clone();
        let layer = blocking(move || Ok(layers.new_layer()?)).await?;
        match self.builtin(request, access) {
            Some(builtin) => builtin.fetch(pin, layer.path()).await?,
            None => self.check_out(request, pin, access, layer.path()).await?,
        }
        let note = format!(
            "git snapshot for {}#{}",
            diag::redact_url(&request.remote),
            request.reference
        );
        let note = LayerNote::new(note).of_type(RecordType::SourceGitCheckout);
        blocking(move || {
            let (id, hold) = layer.commit_held(note)?;
            Ok((id.into(), hold))
        })
        .await
    }

    /// The commit and tag objects of what was pinned, which a client may verify itself.
    ///
    /// # Errors
    /// As for [`GitSource::fetch`].
    pub async fn objects(
        &self,
        request: &GitRequest,
        pin: &GitPin,
        access: &GitAccess,
    ) -> Result<GitObjects> {
        if let Some(builtin) = self.builtin(request, access) {
            return builtin.objects(pin).await;
        }
        let git = self.git(request, access)?;
        let (_alone, repository) = self.bring(&git, request, pin).await?;
        let place = Place {
            git_dir: Some(&repository),
            work_tree: None,
        };
        let kind = git.run(&place, &["cat-file", "-t", &pin.object]).await?;
        let tag = match kind.trim() {
            "tag" => Some(
                git.run_raw(&place, &["cat-file", "tag", &pin.object])
                    .await?,
            ),
            _ => None,
        };
        let name = format!("{}^{{commit}}", pin.object);
        let commit_id = git.run(&place, &["rev-parse", &name]).await?;
        Ok(GitObjects {
            commit: git.run_raw(&place, &["cat-file", "commit", &name]).await?,
            commit_id: commit_id.trim().to_owned(),
            tag,
        })
    }

    /// Git without the program, if that is not there or cannot reach the remote.
    fn builtin<'a>(
        &'a self,
        request: &'a GitRequest,
        access: &'a GitAccess,
    ) -> Option<Builtin<'a>> {
        let lacks_ssh = || builtin::is_ssh(&request.remote) && !is_installed(&self.ssh_program);
        (!is_installed(&self.program) || lacks_ssh()).then_some(Builtin {
            dir: &self.dir,
            flights: &self.flights,
            client: &self.client,
            request,
            access,
        })
    }

    /// Fetches and checks out by the program.
    async fn check_out(
        &self,
        request: &GitRequest,
        pin: &GitPin,
        access: &GitAccess,
        target: &Path,
    ) -> Result<()> {
        let git = self.git(request, access)?;
        let (_alone, repository) = self.bring(&git, request, pin).await?;
        let checkout = Checkout {
            git: &git,
            request,
            pin,
            repository: &repository,
            target,
        };
        checkout.run().await
    }

    fn git<'a>(&self, request: &GitRequest, access: &'a GitAccess) -> Result<Git<'a>> {
        Git::new(&self.program, &request.remote, &request.known_hosts, access)
    }

    /// Makes the repository if needed and sees to it that it has what was pinned. Nobody else works in it
    /// as long as the first value lives.
    async fn bring(
        &self,
        git: &Git<'_>,
        request: &GitRequest,
        pin: &GitPin,
    ) -> Result<(OwnedMutexGuard<()>, PathBuf)> {
        let key = request.repository_key(pin);
        let alone = self.flights.enter(key).await;
        let repository = self.dir.join(format!("{}.git", key.hex()));
        self.prepare(git, request, pin, &repository).await?;
        let place = Place {
            git_dir: Some(&repository),
            work_tree: None,
        };
        let failed = |error: Error| {
            let shown = diag::redact_url(&request.remote);
            error.context(format!("failed to fetch remote {shown}"))
        };
        let kept = format!("refs/cooperage/{}", pin.object);
        if !git
            .ask(&place, &["rev-parse", "--verify", "--quiet", &kept])
            .await?
        {
            let fetched = self.fetch_object(git, request, pin, &place, &kept).await;
            if fetched.is_err() {
                // What came before the disk was full would keep it full.
                clear_unfinished(&repository);
            }
            fetched.map_err(failed)?;
        }
        let commit = format!("{}^{{commit}}", pin.object);
        let found = git.run(&place, &["rev-parse", "--verify", &commit]).await?;
        let found = found.trim();
        let whole = &request.checksum;
        if !pin.object.starts_with(whole.as_str()) && !found.starts_with(whole.as_str()) {
            return Err(mismatch(whole, &[&pin.object, found]));
        }
        Ok((alone, repository))
    }

    /// Sets a repository up, or clears away what a killed git left in it.
    async fn prepare(
        &self,
        git: &Git<'_>,
        request: &GitRequest,
        pin: &GitPin,
        repository: &Path,
    ) -> Result<()> {
        let ready = repository.join(READY);
        if ready.exists() {
            clear_unfinished(repository);
            // Its time says when the repository was used last.
            std::fs::write(&ready, "")?;
            return Ok(());
        }
        if repository.exists() {
            let old = repository.to_owned();
            blocking(move || Ok(std::fs::remove_dir_all(old)?)).await?;
        }
        let mut init: Vec<&str> = vec!["init", "--quiet", "--bare"];
        init.extend(pin.format_argument());
        let place = Place {
            git_dir: Some(repository),
            work_tree: None,
        };
        git.run(&place, &init).await?;
        let remote = ["remote", "add", "origin", &request.remote];
        git.run(&place, &remote).await?;
        // Checkouts with a `.git` of their own fetch a commit by its name.
        let any = ["config", "uploadpack.allowAnySHA1InWant", "true"];
        git.run(&place, &any).await?;
        write_address(repository, &request.remote)?;
        std::fs::write(&ready, "")?;
        Ok(())
    }

    /// Fetches what was pinned: by its reference, which every server allows, or by its own name.
    async fn fetch_object(
        &self,
        git: &Git<'_>,
        request: &GitRequest,
        pin: &GitPin,
        place: &Place<'_>,
        kept: &str,
    ) -> Result<()> {
        let update = ["update-ref", kept, &pin.object];
        let short = ["fetch", "--no-tags", "--force", "--depth=1", "origin"];
        if pin.reference != pin.object && !request.fetch_by_commit {
            let spec = format!("+{}:{kept}", pin.reference);
            git.run(place, &[&short[..], &[&spec]].concat()).await?;
            let said = git.run(place, &["rev-parse", "--verify", kept]).await?;
            if said.trim() == pin.object {
                return Ok(());
            }
            // The reference has moved since it was pinned.
            git.run(place, &["update-ref", "-d", kept]).await?;
        }
        if git
            .ask(place, &[&short[..], &[&pin.object]].concat())
            .await?
        {
            git.run(place, &update).await?;
            return Ok(());
        }
        // The server gives no objects by name: all of its branches and tags may have it.
        let mut whole = vec!["fetch", "--tags", "--force", "--prune"];
        if place
            .git_dir
            .is_some_and(|dir| dir.join("shallow").exists())
        {
            whole.push("--unshallow");
        }
        whole.extend(["origin", "+refs/heads/*:refs/remotes/origin/*"]);
        git.run(place, &whole).await?;
        if !git.ask(place, &["cat-file", "-e", &pin.object]).await? {
            let text = format!(
                "fetched ref {} does not match expected commit {} and commit can not be found in the repository",
                pin.reference, pin.object
            );
            return Err(Error::not_found(text));
        }
        git.run(place, &update).await?;
        Ok(())
    }
}

impl GitRequest {
    fn check(&self) -> Result<()> {
        if self.reference.starts_with('-') {
            return Err(Error::invalid(format!(
                "invalid git ref {:?}",
                self.reference
            )));
        }
        if !self.checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::invalid(format!(
                "invalid checksum {} for Git URL, expected hex commit hash",
                self.checksum
            )));
        }
        Ok(())
    }

    /// The pin of a request that says itself which commit it means.
    fn pinned(&self) -> Result<Option<GitPin>> {
        let pin = |reference: &str, object: &str| {
            Ok(Some(GitPin {
                reference: reference.to_owned(),
                object: object.to_owned(),
                commit: None,
            }))
        };
        if is_commit(&self.reference) {
            if !self.reference.starts_with(&self.checksum) {
                return Err(mismatch(&self.checksum, &[&self.reference]));
            }
            return pin(&self.reference, &self.reference);
        }
        if !self.fetch_by_commit {
            return Ok(None);
        }
        if self.checksum.is_empty() {
            return Err(Error::invalid(
                "fetch-by-commit requires a checksum or a commit SHA ref",
            ));
        }
        if !is_commit(&self.checksum) {
            return Err(Error::invalid(format!(
                "fetch-by-commit requires a full commit SHA checksum, got {:?}",
                self.checksum
            )));
        }
        match self.reference.as_str() {
            "" => pin(&self.checksum, &self.checksum),
            full if full.starts_with("refs/") => pin(full, &self.checksum),
            branch => pin(&format!("refs/heads/{branch}"), &self.checksum),
        }
    }

    fn check_pin(&self, pin: &GitPin) -> Result<()> {
        let fits = |object: &str| object.starts_with(&self.checksum);
        if fits(&pin.object) || pin.commit.as_deref().is_some_and(fits) {
            return Ok(());
        }
        let mut found = vec![pin.object.as_str()];
        found.extend(pin.commit.as_deref());
        Err(mismatch(&self.checksum, &found))
    }

    /// Names the repository: objects of two formats cannot be in one.
    fn repository_key(&self, pin: &GitPin) -> Digest {
        Digest::of(format!("{}\0{}", pin.object.len(), self.remote))
    }
}

impl GitPin {
    /// What the outcome of a request depends on, as one text.
    pub fn key(&self, request: &GitRequest) -> String {
        let files = match &self.commit {
            // Without `.git` the tag itself cannot be seen.
            Some(commit) if !request.keep_git_dir => commit,
            _ => &self.object,
        };
        let mut key = files.clone();
        if request.keep_git_dir {
            key.push_str(&format!(".git#{}", self.reference));
        }
        if !request.subdir.is_empty() {
            key.push_str(&format!(":{}", request.subdir));
        }
        if request.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if request.commit_times {
            key.push_str("(mtime=commit)");
        }
        key
    }

    fn format_argument(&self) -> Option<&'static str> {
        (self.object.len() == 64).then_some("--object-format=sha256")
    }
}

/// True for the full name of an object, of either format.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn mismatch(expected: &str, found: &[&str]) -> Error {
    Error::new(
        Code::FailedPrecondition,
        format!(
            "expected checksum to match {expected}, got {}",
            found.join(" or ")
        ),
    )
}

/// The branch that `HEAD` names in the answer of `ls-remote --symref`.
fn default_branch(said: &str) -> Option<String> {
    let head = said.lines().find_map(|line| line.strip_prefix("ref: "))?;
    let name = head.split_whitespace().next()?;
    let branch = name.strip_prefix("refs/heads/")?;
    (!branch.starts_with('-')).then(|| branch.to_owned())
}

/// Chooses among the lines of `ls-remote`: the name as it is, then a branch, then a tag.
fn choose(reference: &str, said: &str) -> Result<GitPin> {
    let in_space = |space: &str| {
        let short = reference.strip_prefix(space).unwrap_or(reference);
        format!("{space}{short}")
    };
    let object = |name: &str| {
        said.lines().find_map(|line| {
            let (object, found) = line.split_once('\t')?;
            (found == name).then(|| object.to_owned())
        })
    };
    let tag = in_space("refs/tags/");
    for name in [in_space("refs/"), in_space("refs/heads/"), tag.clone()] {
        let Some(object_name) = object(&name) else {
            continue;
        };
        if !is_commit(&object_name) {
            return Err(Error::invalid(format!(
                "invalid commit sha {object_name:?}"
            )));
        }
        let commit = (name == tag)
            .then(|| object(&format!("{tag}^{{}}")))
            .flatten();
        return Ok(GitPin {
            reference: name,
            object: object_name,
            commit,
        });
    }
    Err(Error::not_found(format!(
        "repository does not contain ref {reference}, output: {said:?}"
    )))
}

/// Notes down for people where a repository comes from.
fn write_address(repository: &Path, remote: &str) -> Result<()> {
    let path = repository.join(ADDRESS);
    if !path.exists() {
        std::fs::write(path, diag::redact_url(remote))?;
    }
    Ok(())
}

/// Whether a directory is a repository that somebody fetched from lately.
/// Removes what a git that was killed, or whose disk was full, left in a repository: locks, and packs
/// and objects that have not come whole. What cannot be removed is in git's way, and git says so.
fn clear_unfinished(repository: &Path) {
    for lock in [
        "shallow.lock",
        "config.lock",
        "packed-refs.lock",
        "HEAD.lock",
    ] {
        let _ = std::fs::remove_file(repository.join(lock));
    }
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_half = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"tmp_");
    for folder in entries(&repository.join("objects")) {
        for entry in entries(&folder.path()).filter(|entry| is_half(&entry.file_name())) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn is_used(path: &Path) -> bool {
    let used = std::fs::metadata(path.join(READY)).and_then(|meta| meta.modified());
    let age = |time| SystemTime::now().duration_since(time).unwrap_or_default();
    used.is_ok_and(|time| age(time) < UNUSED_MAX)
}

#[cfg(test)]
mod tests;
