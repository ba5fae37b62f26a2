//! A stack of layers seen as one tree, without mounting it.
//!
//! Layers are overlay upper directories: a character device 0/0 hides what is below, a directory
//! that is marked as opaque hides the content of those below.
//!
//! Of a tree that has a listing only the root is looked at: the rest is what the listing says.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use archive::is_whiteout;
use oci::Digest;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;
use session::diffcopy::{Listed, Listing};

use crate::OpError;
use crate::dir_entry::{is_opaque, list, read_link, stat_entry, xattrs};
use crate::root::{LastLink, Resolved, Root, is_dir, is_link};

/// The most links one path may pass.
const LINKS_MAX: usize = 255;

/// A stack of layers seen as one tree.
#[derive(Debug)]
pub struct Tree {
    layers: Vec<Root>,
    /// What is below the root of the one layer, if that is known.
    listing: Option<Listing>,
    /// The directory whose entries were looked at last: neighbours are looked at together.
    parent: Mutex<Option<(usize, Resolved, Arc<OwnedFd>)>>,
}

/// Something in a tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its metadata, from the topmost layer that has it.
    pub(super) stat: Stat,
    /// Where it is: layer number and path there, topmost first; more than one only for a directory.
    places: Vec<(usize, Resolved)>,
    /// Which entry of the tree's listing it is.
    listed: Option<usize>,
}

/// The end of a path in a tree.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Where it really is, links resolved.
    pub(super) path: PathBuf,
    pub(super) node: Node,
}

impl Tree {
    /// The tree of these layer directories, bottom first. No directory gives an empty tree.
    pub fn open<P: AsRef<Path>>(layers: impl IntoIterator<Item = P>) -> Result<Self, OpError> {
        let mut roots = layers
            .into_iter()
            .map(|path| Root::open(path.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        roots.reverse();
        Ok(Tree {
            layers: roots,
            listing: None,
            parent: Mutex::new(None),
        })
    }

    /// The tree of a directory that holds what a listing says.
    pub fn listed(root: &Path, listing: Listing) -> Result<Self, OpError> {
        Ok(Tree {
            listing: Some(listing),
            ..Tree::open([root])?
        })
    }

    /// The root directory; `None` in an empty tree.
    pub(super) fn root(&self) -> Result<Option<Node>, OpError> {
        let root = Resolved::default();
        let Some(top) = self.layers.first() else {
            return Ok(None);
        };
        let Some(stat) = top.stat(&root)? else {
            return Ok(None);
        };
        let mut places = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            places.push((number, root.clone()));
            let here = layer.open_dir(&root)?;
            if is_opaque(&here, OsStr::new(".")).map_err(failed("getxattr", &root))? {
                break;
            }
        }
        Ok(Some(Node {
            stat,
            places,
            listed: None,
        }))
    }

    /// What a directory holds, by name.
    pub(super) fn children(&self, dir: &Node) -> Result<BTreeMap<OsString, Node>, OpError> {
        if let Some(listing) = &self.listing {
            return listed_children(listing, dir);
        }
        let mut children: BTreeMap<OsString, Child> = BTreeMap::new();
        for (number, path) in &dir.places {
            let fd = self.layers[*number].open_dir(path)?;
            for name in list(&fd).map_err(failed("read", path))? {
                let known = children.get_mut(&name);
                if known.as_ref().is_some_and(|child| child.closed) {
                    continue;
                }
                let Some(stat) = stat_entry(&fd, &name).map_err(failed("lstat", path))? else {
                    continue;
                };
                let below = path.child(&name);
                let place = Place {
                    number: *number,
                    fd: &fd,
                    name: &name,
                    path: below,
                };
                match known {
                    Some(child) => child.extend(&stat, place)?,
                    None => {
                        let child = Child::new(&stat, place)?;
                        children.insert(name, child);
                    }
                }
            }
        }
        Ok(children
            .into_iter()
            .filter_map(|(name, child)| Some((name, child.node?)))
            .collect())
    }

    /// One entry of a directory.
    pub(super) fn child(&self, dir: &Node, name: &OsStr) -> Result<Option<Node>, OpError> {
        if let Some(listing) = &self.listing {
            let path = match dir.listed.and_then(|at| listing.entries().get(at)) {
                Some(dir) => [&dir.stat.path, name.as_bytes()].join(&b'/'),
                None => name.as_bytes().to_vec(),
            };
            let found = listing.find(&path);
            return found.map(|at| listed_node(listing, at, dir)).transpose();
        }
        let mut found: Option<Child> = None;
        for (number, path) in &dir.places {
            let fd = self.layers[*number].open_dir(path)?;
            let Some(stat) = stat_entry(&fd, name).map_err(failed("lstat", path))? else {
                continue;
            };
            let place = Place {
                number: *number,
                fd: &fd,
                name,
                path: path.child(name),
            };
            match &mut found {
                Some(child) => child.extend(&stat, place)?,
                None => found = Some(Child::new(&stat, place)?),
            }
            if found.as_ref().is_some_and(|child| child.closed) {
                break;
            }
        }
        Ok(found.and_then(|child| child.node))
    }

    /// What a path leads to; links on the way are followed within the tree.
    pub(super) fn resolve(&self, path: &Path, last: LastLink) -> Result<Option<Found>, OpError> {
        let Some(root) = self.root()? else {
            return Ok(None);
        };
        let mut pending = Vec::new();
        push(&mut pending, path);
        let mut trail: Vec<(OsString, Node)> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                trail.pop();
                continue;
            }
            let here = trail.last().map_or(&root, |(_, node)| node);
            if !is_dir(&here.stat) {
                return Ok(None);
            }
            let Some(node) = self.child(here, &name)? else {
                return Ok(None);
            };
            let keep = pending.is_empty() && last == LastLink::Keep;
            if is_link(&node.stat) && !keep {
                links += 1;
                if links > LINKS_MAX {
                    let text = path.display().to_string();
                    return Err(OpError::path("open", text, Errno::LOOP));
                }
                let target = self.link_target(&node)?;
                let target = Path::new(OsStr::from_bytes(target.to_bytes())).to_owned();
                if target.is_absolute() {
                    trail.clear();
                }
                push(&mut pending, &target);
                continue;
            }
            trail.push((name, node));
        }
        let mut path = PathBuf::from("/");
        path.extend(trail.iter().map(|(name, _)| name));
        let node = trail.pop().map_or(root, |(_, node)| node);
        Ok(Some(Found { path, node }))
    }

    /// The target of a link.
    pub(super) fn link_target(&self, node: &Node) -> Result<CString, OpError> {
        if let Some(entry) = self.listed_entry(node) {
            return c_string(&entry.stat.linkname);
        }
        let (dir, name, path) = self.entry(node)?;
        read_link(&dir, name).map_err(failed("readlink", path))
    }

    /// The extended attributes of a node.
    pub(super) fn xattrs(&self, node: &Node) -> Result<Vec<(CString, Vec<u8>)>, OpError> {
        if let Some(entry) = self.listed_entry(node) {
            let known = entry.stat.xattrs.iter();
            return known
                .map(|(name, value)| Ok((c_string(name)?, value.clone())))
                .collect();
        }
        let (dir, name, path) = self.entry(node)?;
        xattrs(&dir, name).map_err(failed("listxattr", path))
    }

    /// The digest of the bytes of a regular file, if it is known without reading it.
    pub(super) fn known_content(&self, node: &Node) -> Option<Digest> {
        self.listed_entry(node)?.content
    }

    fn listed_entry(&self, node: &Node) -> Option<&Listed> {
        self.listing.as_ref()?.file(node.listed?)
    }

    /// Opens a regular file.
    pub(super) fn open_file(&self, node: &Node) -> Result<std::fs::File, OpError> {
        let (dir, name, path) = self.entry(node)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name, flags, Mode::empty());
        Ok(std::fs::File::from(fd.map_err(failed("open", path))?))
    }

    /// The directory a node is in and its name there.
    fn entry<'n>(
        &self,
        node: &'n Node,
    ) -> Result<(Arc<OwnedFd>, &'n OsStr, &'n Resolved), OpError> {
        let (number, path) = first_place(node)?;
        let name = path.name().unwrap_or(OsStr::new("."));
        let parent = path.parent();
        let mut last = self.parent.lock();
        if let Some((known, dir, fd)) = &*last
            && known == number
            && *dir == parent
        {
            return Ok((fd.clone(), name, path));
        }
        let opened = self.layers[*number].open_parent(path)?;
        let fd = Arc::new(opened.ok_or_else(|| failed("lstat", path)(Errno::NOENT))?);
        *last = Some((*number, parent, fd.clone()));
        Ok((fd, name, path))
    }
}

/// An entry while its places are collected from the top down.
struct Child {
    /// `None` for what is hidden.
    node: Option<Node>,
    /// Whether lower layers no longer count.
    closed: bool,
}

/// One place an entry was seen at.
struct Place<'a> {
    number: usize,
    fd: &'a OwnedFd,
    name: &'a OsStr,
    path: Resolved,
}

impl Child {
    fn new(stat: &Stat, place: Place<'_>) -> Result<Self, OpError> {
        if is_whiteout(stat) {
            return Ok(Child {
                node: None,
                closed: true,
            });
        }
        let closed = !is_dir(stat) || place.is_opaque()?;
        Ok(Child {
            node: Some(Node {
                stat: *stat,
                places: vec![(place.number, place.path)],
                listed: None,
            }),
            closed,
        })
    }

    /// Takes in what a lower layer has under the same name.
    fn extend(&mut self, stat: &Stat, place: Place<'_>) -> Result<(), OpError> {
        self.closed = !is_dir(stat) || place.is_opaque()?;
        if let Some(node) = &mut self.node
            && is_dir(stat)
        {
            node.places.push((place.number, place.path));
        }
        Ok(())
    }
}

impl Place<'_> {
    fn is_opaque(&self) -> Result<bool, OpError> {
        is_opaque(self.fd, self.name).map_err(failed("getxattr", &self.path))
    }
}

/// What a listing has in a directory, by name.
fn listed_children(listing: &Listing, dir: &Node) -> Result<BTreeMap<OsString, Node>, OpError> {
    let (mut at, end) = match dir.listed {
        Some(dir) => (dir + 1, listing.end_below(dir)),
        None => (0, listing.entries().len()),
    };
    let mut children = BTreeMap::new();
    while at < end {
        let path = &listing.entries()[at].stat.path;
        let start = path.iter().rposition(|&byte| byte == b'/');
        let name = path[start.map_or(0, |slash| slash + 1)..].to_vec();
        children.insert(OsString::from_vec(name), listed_node(listing, at, dir)?);
        at = listing.end_below(at);
    }
    Ok(children)
}

/// A node of an entry; what a listing does not say is as it is with its directory.
fn listed_node(listing: &Listing, at: usize, dir: &Node) -> Result<Node, OpError> {
    let lost = || OpError::Invalid("a listing without the first name of a file".into());
    let entry = listing.file(at).ok_or_else(lost)?;
    let mut stat = dir.stat;
    stat.st_mode = entry.unix_mode();
    (stat.st_uid, stat.st_gid) = (entry.stat.uid, entry.stat.gid);
    stat.st_size = entry.stat.size;
    let (major, minor) = (entry.stat.devmajor as u32, entry.stat.devminor as u32);
    stat.st_rdev = rustix::fs::makedev(major, minor);
    Ok(Node {
        stat,
        places: Vec::new(),
        listed: Some(at),
    })
}

fn c_string(bytes: &[u8]) -> Result<CString, OpError> {
    CString::new(bytes).map_err(|_| OpError::Invalid("a name with a zero byte".into()))
}

fn first_place(node: &Node) -> Result<&(usize, Resolved), OpError> {
    node.places
        .first()
        .ok_or_else(|| OpError::Invalid("a tree entry without a place".into()))
}

fn failed<'a>(call: &'static str, path: &'a Resolved) -> impl FnOnce(Errno) -> OpError + 'a {
    move |errno| OpError::path(call, path.display(), errno)
}

fn push(pending: &mut Vec<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push(name.to_owned()),
            Component::ParentDir => pending.push("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}
