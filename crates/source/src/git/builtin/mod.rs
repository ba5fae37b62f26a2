//! Git without the `git` program: what a server needs that is one executable.
//!
//! Speaks to remotes over HTTP, git's own transport and ssh, keeps of each remote the packs that
//! came, and writes the files of a commit with its submodules. It reads and never pushes, and follows
//! no history: what is wanted is a commit and its files.
//!
//! **Invariants**: every object has the name that its content gives; a commit counts as here when
//! everything that belongs to it is; a remote's repository is used by one at a time, and nobody waits
//! for one while holding another.

mod attributes;
mod delta;
mod files;
mod git_dir;
mod modules;
mod object;
mod pack;
mod pack_reader;
mod packet;
mod protocol;
mod repository;
mod ssh;
mod transport;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use diag::{Code, Context, Error, Result};
use futures::future::BoxFuture;
use oci::Digest;
use reqwest::Client;

use super::command::{GitAccess, token_scope};
use super::{GitObjects, GitPin, GitRequest, choose, mismatch};
use crate::flights::Flights;
use crate::resolve::blocking;
use files::{Subtree, Written, write_tree};
use git_dir::GitDir;
use modules::{Submodule, parse_modules};
use object::{Kind, Oid, parse_tree};
use protocol::{Reference, Session, Wants};
use repository::Repository;
use transport::Remote;

pub(super) use ssh::is_ssh;

/// How deep submodules may be in one another.
const DEPTH_MAX: usize = 32;

/// Git for one request.
pub(super) struct Builtin<'a> {
    /// Where repositories are kept.
    pub(super) dir: &'a Path,
    pub(super) flights: &'a Flights<Digest>,
    pub(super) client: &'a Client,
    pub(super) request: &'a GitRequest,
    pub(super) access: &'a GitAccess,
}

/// One repository whose files are written: the one asked for, or a submodule.
struct Checkout {
    remote: String,
    object: Oid,
    /// The full name by which it was asked for.
    reference: Option<String>,
    /// Where its files go.
    target: PathBuf,
    /// Where its `.git` goes, if it is kept.
    git_dir: Option<PathBuf>,
    /// What the `.git` says besides the usual.
    configuration: String,
    /// The directory of the repository that is wanted; empty for all.
    subdir: String,
    depth: usize,
}

/// What is left to do after the files of a repository were written.
struct Outcome {
    submodules: Vec<(Submodule, Oid)>,
    time: i64,
    /// Whether the wanted directory may be in a submodule and is still to be taken out.
    take_subdir: bool,
}

impl Builtin<'_> {
    /// Asks the remote which object a reference is; with none, the default branch.
    pub(super) async fn pin(&self) -> Result<GitPin> {
        let name = self.request.reference.as_str();
        if name.is_empty() {
            return self.pin_default().await;
        }
        let found = self.references(&spaces(name)).await.map_err(|error| {
            let shown = diag::redact_url(&self.request.remote);
            error.context(format!("failed to fetch remote {shown}"))
        })?;
        let mut said = String::new();
        for one in found.iter().filter(|one| is_meant(&one.name, name)) {
            said.push_str(&format!("{}\t{}\n", one.oid, one.name));
            if let Some(peeled) = one.peeled {
                said.push_str(&format!("{peeled}\t{}^{{}}\n", one.name));
            }
        }
        self.log(&said);
        choose(name, &said)
    }

    async fn pin_default(&self) -> Result<GitPin> {
        let shown = diag::redact_url(&self.request.remote);
        let found = self.references(&["HEAD".to_owned()]).await;
        let found = found.map_err(|error| {
            error.context(format!(
                "error fetching default branch for repository {shown}"
            ))
        })?;
        let head = found.iter().find(|one| one.name == "HEAD");
        let branch = head.and_then(|head| {
            let target = head.symbolic.as_deref()?;
            Some((
                head.oid,
                target.strip_prefix("refs/heads/").map(|_| target)?,
            ))
        });
        let (oid, branch) = branch.ok_or_else(|| {
            let text = format!("could not find default branch for repository: {shown}");
            Error::not_found(text)
        })?;
        self.log(&format!("{oid}\t{branch}\n"));
        Ok(GitPin {
            reference: branch.to_owned(),
            object: oid.to_string(),
            commit: None,
        })
    }

    /// Writes the files of the commit into an empty directory.
    pub(super) async fn fetch(&self, pin: &GitPin, target: &Path) -> Result<()> {
        let object = Oid::parse(&pin.object)?;
        let whole = self.request.subdir.is_empty();
        let checkout = Checkout {
            remote: self.request.remote.clone(),
            object,
            reference: Some(pin.reference.clone()).filter(|name| *name != pin.object),
            target: target.to_owned(),
            git_dir: (self.request.keep_git_dir && whole).then(|| target.join(".git")),
            configuration: String::new(),
            subdir: self.request.subdir.clone(),
            depth: 0,
        };
        let time = self.check_out(checkout).await?;
        if self.request.commit_times {
            let target = target.to_owned();
            blocking(move || super::checkout::set_times(&target, time)).await?;
        }
        Ok(())
    }

    /// The commit and tag objects of what was pinned.
    pub(super) async fn objects(&self, pin: &GitPin) -> Result<GitObjects> {
        let object = Oid::parse(&pin.object)?;
        let repository = self
            .bring(&self.request.remote, object, Some(&pin.reference))
            .await?;
        blocking(move || {
            let (commit, _) = repository.commit(object)?;
            let tag = match repository.read(object)? {
                (Kind::Tag, data) => Some(data),
                _ => None,
            };
            Ok(GitObjects {
                commit_id: commit.to_string(),
                commit: repository.read(commit)?.1,
                tag,
            })
        })
        .await
    }

    /// Writes a repository's files and those of its submodules; returns the time of the commit.
    fn check_out<'a>(&'a self, checkout: Checkout) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            let shown = diag::redact_url(&checkout.remote);
            let repository = self
                .bring(
                    &checkout.remote,
                    checkout.object,
                    checkout.reference.as_deref(),
                )
                .await?;
            if checkout.depth == 0 {
                self.check_commit(&repository, checkout.object)?;
            }
            let wants_submodules = !self.request.skip_submodules;
            let (outcome, checkout) = blocking(move || {
                let outcome = checkout.write(&repository, wants_submodules);
                Ok((outcome, checkout))
            })
            .await?;
            let outcome =
                outcome.map_err(|e| e.context(format!("failed to checkout remote {shown}")))?;
            for (submodule, object) in outcome.submodules {
                self.check_out_submodule(&checkout, submodule, object)
                    .await
                    .with_context(|| format!("failed to update submodules for {shown}"))?;
            }
            if outcome.take_subdir {
                let all = checkout.files_dir(true);
                let (target, subdir) = (checkout.target, checkout.subdir);
                blocking(move || super::checkout::take_subdirectory(&all, &subdir, &target))
                    .await?;
            }
            Ok(outcome.time)
        })
    }

    async fn check_out_submodule(
        &self,
        parent: &Checkout,
        submodule: Submodule,
        object: Oid,
    ) -> Result<()> {
        let path = submodule.path.clone();
        submodule.check()?;
        if parent.depth >= DEPTH_MAX {
            return Err(Error::invalid("submodules are nested too deeply"));
        }
        let remote = submodule.address(&parent.remote)?;
        let base = parent.files_dir(!parent.subdir.is_empty());
        let target = base.join(&path);
        let mut git_dir = None;
        let mut configuration = String::new();
        if let Some(outer) = &parent.git_dir {
            let dir = outer.join("modules").join(&submodule.name);
            let link = format!("gitdir: {}\n", relative(&target, &dir).display());
            std::fs::write(target.join(".git"), link)?;
            configuration = format!("\tworktree = {}\n", relative(&dir, &target).display());
            git_dir = Some(dir);
        }
        let checkout = Checkout {
            remote,
            object,
            reference: None,
            target,
            git_dir,
            configuration,
            subdir: String::new(),
            depth: parent.depth + 1,
        };
        self.check_out(checkout)
            .await
            .map(drop)
            .with_context(|| format!("submodule {path}"))
    }

    /// The repository of a remote with an object and everything that belongs to it.
    async fn bring(
        &self,
        remote: &str,
        object: Oid,
        reference: Option<&str>,
    ) -> Result<Repository> {
        let format = object.format();
        let key = Digest::of(format!("packs\0{}\0{remote}", format.name()));
        let alone = self.flights.enter(key).await;
        let dir = self.dir.join(format!("{}.packs", key.hex()));
        let address = remote.to_owned();
        let repository = blocking(move || {
            let repository = Repository::open(&dir, format, alone)?;
            super::write_address(&dir, &address)?;
            Ok(repository)
        })
        .await?;
        if repository.keeps(object) {
            return Ok(repository);
        }
        let shown = diag::redact_url(remote);
        self.fetch_object(remote, object, reference, repository)
            .await
            .with_context(|| format!("failed to fetch remote {shown}"))
    }

    /// Fetches an object by its name; if the remote gives none so, all branches and tags.
    async fn fetch_object(
        &self,
        remote: &str,
        object: Oid,
        reference: Option<&str>,
        repository: Repository,
    ) -> Result<Repository> {
        let mut session = self.session(remote).await?;
        if session.format() != object.format() {
            return Err(Error::invalid(format!(
                "{object} is no name in a repository with {}",
                session.format().name()
            )));
        }
        let given = session.gives_any_object() || {
            let tips = session.references(&["refs/".to_owned()]).await?;
            tips.iter().any(|one| one.oid == object)
        };
        if given {
            let (have, boundary) = repository.kept()?;
            let wants = Wants {
                wanted: vec![object],
                shallow: true,
                have,
                boundary,
            };
            let pack = repository.new_pack()?;
            match receive(&mut session, &wants, &pack).await {
                Ok(boundary) => return accept(repository, pack, boundary, object).await,
                // The remote does not give that.
                Err(error) if error.code() == Code::Unknown => {}
                Err(error) => return Err(error),
            }
            session = self.session(remote).await?;
        }
        let prefixes = ["refs/heads/".to_owned(), "refs/tags/".to_owned()];
        let tips = session.references(&prefixes).await?;
        let wants = Wants {
            wanted: tips.iter().map(|one| one.oid).collect(),
            ..Wants::default()
        };
        if wants.wanted.is_empty() {
            return Err(Error::not_found("the remote has no branches and no tags"));
        }
        let pack = repository.new_pack()?;
        let boundary = receive(&mut session, &wants, &pack).await?;
        let name = reference.map_or_else(|| object.to_string(), str::to_owned);
        accept(repository, pack, boundary, object).await.map_err(|error| {
            let text = format!(
                "fetched ref {name} does not match expected commit {object} and commit can not be found in the repository"
            );
            match error.code() {
                Code::NotFound => Error::not_found(text),
                _ => error,
            }
        })
    }

    async fn references(&self, prefixes: &[String]) -> Result<Vec<Reference>> {
        let mut session = self.session(&self.request.remote).await?;
        session.references(prefixes).await
    }

    /// Connects; a header for one remote is not for another.
    async fn session(&self, remote: &str) -> Result<Session> {
        let mut access = self.access.clone();
        if !remote.starts_with(token_scope(&self.request.remote)) {
            access.authorization = None;
        }
        let known_hosts = &self.request.known_hosts;
        let remote = Remote::connect(remote, known_hosts, &access, self.client).await?;
        Session::open(remote).await
    }

    /// Looks whether the commit is what was expected.
    fn check_commit(&self, repository: &Repository, object: Oid) -> Result<()> {
        let (commit, _) = repository.commit(object)?;
        let (object, commit) = (object.to_string(), commit.to_string());
        let expected = &self.request.checksum;
        if object.starts_with(expected) || commit.starts_with(expected) {
            return Ok(());
        }
        Err(mismatch(expected, &[&object, &commit]))
    }

    fn log(&self, said: &str) {
        if let Some(log) = &self.access.log {
            log(1, Bytes::copy_from_slice(said.as_bytes()));
        }
    }
}

impl Checkout {
    /// Where the files go first: aside, if only a directory of them is wanted in the end.
    fn files_dir(&self, aside: bool) -> PathBuf {
        if aside && !self.subdir.is_empty() {
            self.target.join(format!(".cooperage-{}", self.object))
        } else {
            self.target.clone()
        }
    }

    fn write(&self, repository: &Repository, wants_submodules: bool) -> Result<Outcome> {
        let (_, commit) = repository.commit(self.object)?;
        let modules = module_file(repository, commit.tree)?;
        // Without submodules the directory can be taken right away.
        let direct = (modules.is_none() || !wants_submodules) && !self.subdir.is_empty();
        let dir = self.files_dir(!direct);
        let tree = match direct {
            true => subtree(repository, commit.tree, &self.subdir)
                .with_context(|| format!("invalid subdir {}", self.subdir))?,
            false => Subtree::whole(commit.tree),
        };
        if dir != self.target {
            files::new_dir(&dir)?;
        }
        let written = write_tree(repository, tree, &dir)?;
        let submodules = match modules {
            Some(text) if wants_submodules => submodules_of(&text, &written)?,
            _ => Vec::new(),
        };
        if let Some(git_dir) = &self.git_dir {
            let shown = diag::redact_url(&self.remote);
            let mut configuration = String::new();
            for (submodule, _) in &submodules {
                let url = diag::redact_url(&submodule.address(&self.remote)?);
                configuration.push_str(&format!(
                    "[submodule \"{}\"]\n\tactive = true\n\turl = {url}\n",
                    submodule.name.replace('\\', "\\\\").replace('"', "\\\"")
                ));
            }
            if !self.configuration.is_empty() {
                configuration.push_str(&format!("[core]\n{}", self.configuration));
            }
            let git_dir_of = GitDir {
                remote: &shown,
                object: self.object,
                reference: self.reference.as_deref(),
                configuration,
                work_tree: &dir,
                files: &written,
            };
            git_dir_of.write(repository, git_dir)?;
        }
        Ok(Outcome {
            submodules,
            time: commit.time,
            take_subdir: !self.subdir.is_empty() && !direct,
        })
    }
}

async fn receive(
    session: &mut Session,
    wants: &Wants,
    pack: &tempfile::NamedTempFile,
) -> Result<Vec<Oid>> {
    let file = tokio::fs::File::from_std(pack.as_file().try_clone()?);
    let mut file = tokio::io::BufWriter::with_capacity(256 << 10, file);
    session.fetch(wants, &mut file).await
}

async fn accept(
    mut repository: Repository,
    pack: tempfile::NamedTempFile,
    boundary: Vec<Oid>,
    object: Oid,
) -> Result<Repository> {
    blocking(move || {
        repository.accept(pack, &boundary)?;
        repository.keep(object)?;
        Ok(repository)
    })
    .await
}

/// The way from a directory to a path, both of which are absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (mut from, mut to) = (from.components(), to.components());
    while from.clone().next().is_some() && from.clone().next() == to.clone().next() {
        from.next();
        to.next();
    }
    let up = from.map(|_| std::path::Component::ParentDir);
    up.chain(to).collect()
}

/// Full names that a name may stand for.
fn spaces(name: &str) -> [String; 3] {
    ["refs/", "refs/heads/", "refs/tags/"].map(|space| {
        let short = name.strip_prefix(space).unwrap_or(name);
        format!("{space}{short}")
    })
}

fn is_meant(full: &str, name: &str) -> bool {
    spaces(name).iter().any(|one| one == full)
}

/// The text of `.gitmodules`; a link of that name does not count.
fn module_file(repository: &Repository, tree: Oid) -> Result<Option<String>> {
    let (_, data) = repository.read(tree)?;
    let entries = parse_tree(&data, repository.format())?;
    let file = entries
        .iter()
        .find(|entry| entry.name == b".gitmodules" && entry.mode & 0o170_000 == 0o100_000);
    let Some(file) = file else { return Ok(None) };
    let (_, text) = repository.read(file.oid)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// The submodules that are in the tree, each with its commit.
fn submodules_of(text: &str, written: &[Written]) -> Result<Vec<(Submodule, Oid)>> {
    let known = parse_modules(text);
    let mut found = Vec::new();
    for one in written.iter().filter(|one| one.is_submodule()) {
        let path = String::from_utf8_lossy(&one.path);
        let module = known.iter().find(|module| module.path == path);
        let module = module
            .filter(|module| !module.url.is_empty())
            .ok_or_else(|| {
                Error::invalid(format!(
                    "no submodule mapping found in .gitmodules for path '{path}'"
                ))
            })?;
        if !module.is_off {
            found.push((module.clone(), one.oid));
        }
    }
    Ok(found)
}

/// The tree of a directory.
fn subtree(repository: &Repository, tree: Oid, subdir: &str) -> Result<Subtree> {
    let mut found = Subtree::whole(tree);
    for part in subdir.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            return Err(Error::invalid(
                "a subdirectory must be inside of its repository",
            ));
        }
        found = found.enter(repository, part.as_bytes())?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
