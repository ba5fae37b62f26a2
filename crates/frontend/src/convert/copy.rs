//! `COPY` and `ADD`.

use diag::Result;
use dockerfile::quote::quoted;
use dockerfile::{AddInstruction, CopyInstruction, SourcesAndDest};
use llb::{ChownOpt, CopyAction, FileActionKind, MkFileAction, ProgressGroup, UserOpt, VertexMeta};
use oci::Digest;
use pathmatch::clean_path;

use crate::convert::chmod::Mode;
use crate::convert::dispatch::Place;
use crate::convert::{Converter, checks};
use crate::failure::fail;
use crate::git::{
    GitRef, http_file_name, http_source, is_git_source, is_http_source, parse_checksum,
};
use crate::plan::{Change, Node, NodeOp, Output, named};

/// What is copied, with variables expanded.
struct Copying {
    files: SourcesAndDest,
    /// Where paths are found.
    from: Output,
    /// Whether that is the build context, which an ignore file may thin out.
    from_context: bool,
    is_add: bool,
    chown: String,
    chmod: String,
    exclude: Vec<String>,
    link: bool,
    parents: bool,
    keep_git_dir: Option<bool>,
    checksum: String,
    unpack: Option<bool>,
}

impl Converter<'_> {
    pub(super) fn add(&mut self, place: Place<'_>, add: &AddInstruction) -> Result<()> {
        let copying = Copying {
            chown: self.expand(place, &add.chown)?,
            chmod: self.expand(place, &add.chmod)?,
            checksum: self.expand(place, &add.checksum)?,
            files: self.expand_files(place, &add.files)?,
            from: self.context,
            from_context: true,
            is_add: true,
            exclude: add.exclude.clone(),
            link: add.link,
            parents: false,
            keep_git_dir: add.keep_git_dir,
            unpack: add.unpack,
        };
        self.copy_files(place, &copying)?;
        let local = |path: &&String| !path.starts_with("http://") && !path.starts_with("https://");
        let paths = copying.files.paths.iter().filter(local);
        self.path_sets[self.context_paths].extend(paths.map(|path| rooted(path)));
        Ok(())
    }

    pub(super) fn copy(&mut self, place: Place<'_>, copy: &CopyInstruction) -> Result<()> {
        let chown = self.expand(place, &copy.chown)?;
        let chmod = self.expand(place, &copy.chmod)?;
        let files = self.expand_files(place, &copy.files)?;
        let (from, paths) = match place.sources.first() {
            Some(source) => {
                if !self.stages[*source].dispatched {
                    return Err(fail(format!(
                        "cannot copy from stage {}, it needs to be defined before current stage {}",
                        quoted(&copy.from),
                        quoted(&self.stages[place.id].name)
                    )));
                }
                let stage = &self.stages[*source];
                (stage.fs.output, stage.paths)
            }
            None => (self.context, self.context_paths),
        };
        let copying = Copying {
            chown,
            chmod,
            files,
            from,
            from_context: place.sources.is_empty(),
            is_add: false,
            exclude: copy.exclude.clone(),
            link: copy.link,
            parents: copy.parents,
            keep_git_dir: None,
            checksum: String::new(),
            unpack: None,
        };
        self.copy_files(place, &copying)?;
        self.path_sets[paths].extend(copying.files.paths.iter().map(|path| rooted(path)));
        Ok(())
    }

    fn copy_files(&mut self, place: Place<'_>, copying: &Copying) -> Result<()> {
        let id = place.id;
        let mode = match copying.chmod.as_str() {
            "" => None,
            text => Some(Mode::parse(text)?),
        };
        check_checksum(copying)?;
        let shown = self.shown_text(&self.lexer, place.code, &self.stages[id].fs.env);
        let platform = self.platform_of(id).clone();
        let step = self.stages[id].step;
        let name = self.step_name(id, &shown, Some(&platform), true);
        let copy = CopyAction {
            dest: self.destination(id, &copying.files.dest),
            owner: (!copying.chown.is_empty()).then(|| owner(&copying.chown)),
            exclude_patterns: copying.exclude.clone(),
            create_dest_path: true,
            mode: match &mode {
                Some(Mode::Octal(bits)) => Some(*bits),
                // A symbolic mode goes with zero in the octal field, as stock has it.
                Some(Mode::Symbolic(_)) => Some(0),
                None => None,
            },
            mode_str: match mode {
                Some(Mode::Symbolic(text)) => text,
                _ => String::new(),
            },
            ..CopyAction::default()
        };
        let mut changes = Vec::new();
        for path in &copying.files.paths {
            changes.push(self.copied_path(place, copying, path, &copy, &name)?);
        }
        for content in &copying.files.contents {
            changes.push(self.inline_file(id, &content.path, content.data.clone(), &copy));
        }
        let meta = VertexMeta {
            ignore_cache: self.stages[id].ignore_cache,
            ..named(&name)
        };
        if copying.link && copying.chmod.is_empty() {
            self.link_files(place, changes, meta, &shown, &platform, step);
        } else {
            let base = self.stages[id].fs.output;
            self.stages[id].fs.output = self.plan.add(Node {
                op: NodeOp::File(base, changes),
                platform: Some(platform),
                meta,
                lines: Some(place.lines),
            });
        }
        let made_by = format!("{} # buildkit", history_text(copying));
        self.add_history(id, made_by, true);
        Ok(())
    }

    /// The copy becomes a layer of its own, stacked on what is there.
    fn link_files(
        &mut self,
        place: Place<'_>,
        changes: Vec<Change>,
        meta: VertexMeta,
        shown: &str,
        platform: &oci::Platform,
        step: usize,
    ) {
        let id = place.id;
        // Both steps count as one.
        self.stages[id].step = step;
        let merge_name = self.step_name(id, &format!("LINK {shown}"), Some(platform), true);
        let group_name = meta
            .description
            .get("llb.customname")
            .cloned()
            .unwrap_or_default();
        let group_id = Digest::of(format!("{id} {step} {group_name}")).hex()[..25].to_owned();
        let group = |weak| ProgressGroup {
            id: group_id.clone(),
            name: group_name.clone(),
            weak,
        };
        let layer = self.plan.add(Node {
            op: NodeOp::File(Output::Scratch, changes),
            platform: Some(platform.clone()),
            meta: VertexMeta {
                progress_group: Some(group(true)),
                ..meta.clone()
            },
            lines: Some(place.lines),
        });
        let base = self.stages[id].fs.output;
        self.stages[id].fs.output = if base == Output::Scratch {
            layer
        } else {
            self.plan.add(Node {
                op: NodeOp::Merge(vec![base, layer]),
                platform: None,
                meta: VertexMeta {
                    progress_group: Some(group(false)),
                    ignore_cache: meta.ignore_cache,
                    ..named(merge_name)
                },
                lines: Some(place.lines),
            })
        };
    }

    fn copied_path(
        &mut self,
        place: Place<'_>,
        copying: &Copying,
        path: &str,
        copy: &CopyAction,
        name: &str,
    ) -> Result<Change> {
        let git = GitRef::parse(path)?.filter(|git| !git.may_be_local);
        if let Some(git) = git {
            if !copying.is_add {
                return Err(fail("source can't be a git ref for COPY"));
            }
            return self.added_repository(copying, git, copy, name);
        }
        if is_http_source(path) {
            if !copying.is_add {
                return Err(fail("source can't be a URL for COPY"));
            }
            return self.added_download(copying, path, copy, name);
        }
        if copying.from_context {
            checks::copied_path(self, copying.is_add, path, place.lines, place.lint);
        }
        Ok(Change {
            kind: FileActionKind::Copy(Box::new(copied_local(copying, path, copy))),
            source: Some(copying.from),
        })
    }

    fn added_repository(
        &mut self,
        copying: &Copying,
        mut git: GitRef,
        copy: &CopyAction,
        name: &str,
    ) -> Result<Change> {
        if let (Some(flag), Some(query)) = (copying.keep_git_dir, git.keep_git_dir)
            && flag != query
        {
            return Err(fail("inconsistent keep-git-dir configuration"));
        }
        if !copying.checksum.is_empty() {
            if !git.checksum.is_empty() && git.checksum != copying.checksum {
                return Err(fail(format!(
                    "checksum mismatch {} != {}",
                    quoted(&copying.checksum),
                    quoted(&git.checksum)
                )));
            }
            git.checksum.clone_from(&copying.checksum);
        }
        let keep = git.keep_git_dir.or(copying.keep_git_dir) == Some(true);
        let source = self
            .plan
            .add_source(git.source(keep), None, named(name), None);
        Ok(Change {
            kind: FileActionKind::Copy(Box::new(CopyAction {
                src: "/".to_owned(),
                ..copy.clone()
            })),
            source: Some(source),
        })
    }

    fn added_download(
        &mut self,
        copying: &Copying,
        address: &str,
        copy: &CopyAction,
        name: &str,
    ) -> Result<Change> {
        let file_name = http_file_name(address);
        let checksum = match copying.checksum.as_str() {
            "" => None,
            text => Some(parse_checksum(text)?),
        };
        let source = http_source(address, &file_name, checksum.as_deref());
        let source = self.plan.add_source(source, None, named(name), None);
        Ok(Change {
            kind: FileActionKind::Copy(Box::new(CopyAction {
                src: clean_path(&format!("/{file_name}")),
                attempt_unpack: copying.unpack.unwrap_or(false),
                ..copy.clone()
            })),
            source: Some(source),
        })
    }

    fn inline_file(&mut self, id: usize, path: &str, data: Vec<u8>, copy: &CopyAction) -> Change {
        let path = clean_path(&format!("/{path}"));
        let source = self.inline_document(id, &path, 0o644, data);
        Change {
            kind: FileActionKind::Copy(Box::new(CopyAction {
                src: path,
                ..copy.clone()
            })),
            source: Some(source),
        }
    }

    /// A file system with one file, for here-documents.
    pub(super) fn inline_document(
        &mut self,
        id: usize,
        path: &str,
        mode: u32,
        data: Vec<u8>,
    ) -> Output {
        let platform = self.platform_of(id).clone();
        self.plan.add(Node {
            op: NodeOp::File(
                Output::Scratch,
                vec![Change {
                    kind: FileActionKind::MkFile(MkFileAction {
                        path: path.to_owned(),
                        mode,
                        data,
                        owner: None,
                        timestamp: None,
                    }),
                    source: None,
                }],
            ),
            platform: Some(platform),
            meta: named("[internal] preparing inline document"),
            lines: None,
        })
    }
}

/// A copy of a path or pattern of the context or a stage.
fn copied_local(copying: &Copying, path: &str, copy: &CopyAction) -> CopyAction {
    let mut source = path;
    let mut include_patterns = Vec::new();
    let mut required_paths = Vec::new();
    if copying.parents {
        // What stands before `/./` is not part of what is kept.
        let (start, pattern) = match path.split_once("/./") {
            Some((start, pattern)) => (start, pattern),
            None => ("/", path),
        };
        source = start;
        let pattern = if pattern.starts_with('/') {
            pattern.to_owned()
        } else {
            clean_path(&format!("/{pattern}"))
        };
        include_patterns.push(pattern.strip_prefix('/').unwrap_or(&pattern).to_owned());
        if !has_wildcards(source) && !has_wildcards(&pattern) {
            required_paths.push(clean_path(&format!("/{source}/{pattern}")));
        }
    }
    CopyAction {
        src: rooted(source),
        follow_symlink: true,
        dir_copy_contents: true,
        include_patterns,
        required_paths,
        attempt_unpack: copying.unpack.unwrap_or(copying.is_add),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..copy.clone()
    }
}

fn check_checksum(copying: &Copying) -> Result<()> {
    if copying.checksum.is_empty() {
        return Ok(());
    }
    let [path] = copying.files.paths.as_slice() else {
        return Err(fail("checksum can't be specified for multiple sources"));
    };
    if !is_http_source(path) && !is_git_source(path) {
        return Err(fail("checksum requires HTTP(S) or Git sources"));
    }
    Ok(())
}

fn history_text(copying: &Copying) -> String {
    let mut text = if copying.is_add { "ADD" } else { "COPY" }.to_owned();
    if copying.parents {
        text.push_str(" --parents");
    }
    if !copying.chown.is_empty() {
        text.push_str(&format!(" --chown={}", copying.chown));
    }
    if !copying.chmod.is_empty() {
        text.push_str(&format!(" --chmod={}", copying.chmod));
    }
    for path in &copying.files.paths {
        text.push_str(&format!(" {path}"));
    }
    for content in &copying.files.contents {
        text.push_str(&format!(" <<{}", content.path));
    }
    text.push_str(&format!(" {}", copying.files.dest));
    text
}

/// The path below the root, cleaned.
fn rooted(path: &str) -> String {
    clean_path(&format!("/{path}"))
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

/// Reads `user[:group]`, each a number or a name that the file system to be changed knows.
pub(super) fn owner(text: &str) -> ChownOpt {
    let one = |text: &str| match text.parse::<i32>() {
        _ if matches!(text, "root" | "") => UserOpt::ById(0),
        Ok(id) => UserOpt::ById(id as u32),
        Err(_) => UserOpt::ByName {
            name: text.to_owned(),
            input: None,
        },
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    ChownOpt {
        user: Some(one(user)),
        group: group.map(one),
    }
}
