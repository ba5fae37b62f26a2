//! Exports of plain files: into a folder of the client (`local`) or an archive (`tar`).

use std::collections::HashMap;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archive::{Header, Mtime, TarOptions, Writer};
use diag::{Error, Result};
use futures::future::try_join_all;
use layers::{LayerStore, MountedStack};
use parking_lot::Mutex;
use status::{Line, StatusSink};
use tokio_util::io::SyncIoBridge;

use crate::attrs::FilesAttrs;
use crate::commit::ExportSource;
use crate::sending::{BRIDGE_BUFFER, blocking, send_through};
use crate::target::{ClientTarget, SentBytes, Tree};

/// A result's files, mounted, with the folder they go into.
struct MountedTree {
    id: String,
    mounted: MountedStack,
    folder: Option<String>,
    mtime: Option<i64>,
}

/// Sends the files of all platforms into the client's folder.
pub(crate) async fn export_local(
    layers: &LayerStore,
    source: &ExportSource,
    attrs: &FilesAttrs,
    target: &dyn ClientTarget,
    statuses: &Arc<dyn StatusSink>,
) -> Result<()> {
    let split = attrs.platform_split.unwrap_or(source.multi);
    let trees = mount_all(layers, source, attrs, split).await?;
    let trees = match split || trees.len() < 2 {
        true => trees,
        false => blocking(move || no_path_twice(&trees).map(|()| trees)).await?,
    };
    let wire = |tree: &MountedTree| Tree {
        root: tree.mounted.path().to_owned(),
        folder: tree.folder.clone(),
        mtime: tree.mtime,
    };
    if attrs.delete {
        // What is to be deleted is known only with all trees in hand.
        let all = trees.iter().map(wire).collect();
        let (sent, line) = counter(statuses, "copying files".to_owned());
        target.send_trees(all, true, sent).await?;
        finish(&line);
        return Ok(());
    }
    try_join_all(trees.iter().map(|tree| async {
        let label = match split {
            true => format!("copying files {}", tree.id),
            false => "copying files".to_owned(),
        };
        let (sent, line) = counter(statuses, label);
        target.send_trees(vec![wire(tree)], false, sent).await?;
        finish(&line);
        Ok::<(), Error>(())
    }))
    .await?;
    Ok(())
}

/// Sends the files of all platforms as one archive.
pub(crate) async fn export_tar(
    layers: &LayerStore,
    source: &ExportSource,
    attrs: &FilesAttrs,
    target: &dyn ClientTarget,
    statuses: &Arc<dyn StatusSink>,
) -> Result<()> {
    let trees = mount_all(layers, source, attrs, source.multi).await?;
    let line = Line::start(statuses, "sending tarball");
    let stream = target.send_file(&Default::default()).await;
    send_through(stream, move |stream| write_trees(&trees, stream)).await?;
    line.finish();
    Ok(())
}

fn write_trees<W: tokio::io::AsyncWrite + Unpin>(
    trees: &[MountedTree],
    stream: SyncIoBridge<W>,
) -> Result<SyncIoBridge<W>> {
    let mut tar = Writer::new(BufWriter::with_capacity(BRIDGE_BUFFER, stream));
    for tree in trees {
        let mtime = tree.mtime.map(Mtime::from_secs);
        let mut options = TarOptions {
            mtime_max: mtime,
            ..TarOptions::default()
        };
        if let Some(folder) = &tree.folder {
            let mut header = Header::directory(folder.as_str());
            header.mtime = mtime.unwrap_or_default();
            options.prefix = header.path.clone();
            tar.append(&header, std::io::empty())?;
        }
        tar.append_tree(tree.mounted.path(), &options)?;
    }
    tar.finish()?
        .into_inner()
        .map_err(|error| Error::from(error.into_error()))
}

async fn mount_all(
    layers: &LayerStore,
    source: &ExportSource,
    attrs: &FilesAttrs,
    split: bool,
) -> Result<Vec<MountedTree>> {
    if !source.multi && source.platforms.len() > 1 {
        return Err(Error::invalid(
            "unable to export multiple platforms without map",
        ));
    }
    let mut trees = Vec::new();
    for platform in &source.platforms {
        let (layers, stack) = (layers.clone(), platform.stack.clone());
        let mounted = blocking(move || Ok(layers.mount(&stack)?)).await?;
        trees.push(MountedTree {
            id: platform.id.clone(),
            mounted,
            folder: split.then(|| platform.id.replace('/', "_")),
            mtime: match attrs.epoch {
                Some(explicit) => explicit,
                None => platform.epoch.or(source.epoch),
            },
        });
    }
    Ok(trees)
}

/// Fails if a file of one tree would lie over that of another.
fn no_path_twice(trees: &[MountedTree]) -> Result<()> {
    let mut seen: HashMap<PathBuf, &str> = HashMap::new();
    for tree in trees {
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(tree.mounted.path().join(&folder))? {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                    continue;
                }
                if let Some(other) = seen.insert(path.clone(), &tree.id) {
                    return Err(overwritten(&path, other, &tree.id));
                }
            }
        }
    }
    Ok(())
}

fn overwritten(path: &Path, first: &str, second: &str) -> Error {
    Error::invalid(format!(
        "cannot overwrite {} from {first} with {second} when split option is disabled",
        path.display()
    ))
}

type SharedLine = Arc<Mutex<Option<Line>>>;

/// A line that counts bytes sent.
fn counter(statuses: &Arc<dyn StatusSink>, label: String) -> (SentBytes, SharedLine) {
    let line: SharedLine = Arc::new(Mutex::new(Some(Line::start(statuses, label))));
    let counted = Arc::clone(&line);
    let sent: SentBytes = Arc::new(move |bytes| {
        if let Some(line) = counted.lock().as_mut() {
            line.advance_to(bytes);
        }
    });
    (sent, line)
}

fn finish(line: &SharedLine) {
    if let Some(line) = line.lock().take() {
        line.finish();
    }
}
