//! What has to be done to a container for devices to work in it, with what this machine knows of them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::CdiError;
use crate::spec::{ContainerEdits, SpecMount, SpecNode};

/// What is done to a container, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// `NAME=value`; of a name given twice the last holds.
    pub env: Vec<String>,
    /// Device nodes; of a path given twice the last holds.
    pub nodes: Vec<DeviceNode>,
    /// Mounts; of a path given twice the last holds.
    pub mounts: Vec<HostMount>,
    /// Groups the process is in besides its own.
    pub additional_gids: Vec<u32>,
}

/// Kinds of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device, buffered or not.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where it is in the container.
    pub path: String,
    /// Where this machine has it, if it has.
    pub host_path: PathBuf,
    /// Its kind.
    pub kind: DeviceKind,
    /// The kernel's number of the driver; 0 for a named pipe.
    pub major: u32,
    /// The driver's number of the device.
    pub minor: u32,
    /// Permission bits; `None` where neither the file nor this machine says.
    pub mode: Option<u32>,
    /// Owner; `None` for the container's user.
    pub uid: Option<u32>,
    /// Group; `None` for that of the container's user.
    pub gid: Option<u32>,
    /// Whether it may be read.
    pub read: bool,
    /// Whether it may be written.
    pub write: bool,
}

/// A file, folder or new file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    /// Path on this machine.
    pub host_path: PathBuf,
    /// Path in the container.
    pub path: String,
    /// A new file system in memory instead of something of this machine.
    pub tmpfs: bool,
    /// Cannot be written.
    pub readonly: bool,
    /// Set-user-id bits have no effect.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

impl Edits {
    /// Adds what a file says for `device`. Looks at the nodes of this machine. Blocking.
    pub(crate) fn add(&mut self, device: &str, edits: &ContainerEdits) -> Result<(), CdiError> {
        let unsupported = |what: String| CdiError::Unsupported {
            device: device.to_owned(),
            what,
        };
        if let Some(hook) = edits.hooks.first() {
            let what = format!("the hook {} {}", hook.hook_name, hook.path);
            return Err(unsupported(what));
        }
        if !edits.net_devices.is_empty() {
            return Err(unsupported("netDevices".to_owned()));
        }
        if edits.intel_rdt.is_some() {
            return Err(unsupported("intelRdt".to_owned()));
        }
        self.env.extend(edits.env.iter().cloned());
        for node in &edits.device_nodes {
            let node = device_node(node)?;
            self.nodes.retain(|known| known.path != node.path);
            self.nodes.push(node);
        }
        for mount in &edits.mounts {
            let mount = host_mount(mount).map_err(unsupported)?;
            self.mounts.retain(|known| known.path != mount.path);
            self.mounts.push(mount);
        }
        let gids = edits.additional_gids.iter().filter(|gid| **gid != 0);
        self.additional_gids.extend(gids);
        Ok(())
    }
}

/// A node with what the file leaves to this machine.
fn device_node(node: &SpecNode) -> Result<DeviceNode, CdiError> {
    let host_path = match node.host_path.as_str() {
        "" => PathBuf::from(&node.path),
        path => PathBuf::from(path),
    };
    let given = kind_of(&node.kind);
    // A file may describe a node whole, also one that this machine has not.
    let complete = given.filter(|kind| node.major != 0 || *kind == DeviceKind::Fifo);
    let found = on_this_machine(&host_path);
    let (kind, major, minor, mode) = match (complete, found) {
        (Some(kind), found) => (kind, node.major, node.minor, found.ok().map(|f| f.mode)),
        (None, Ok(found)) => {
            if given.is_some_and(|given| given != found.kind) {
                let reason = format!("it is no device of type {:?}", node.kind);
                return Err(host_device(&host_path, reason));
            }
            let (major, minor) = match node.major {
                0 => (found.major, found.minor),
                major => (major, node.minor),
            };
            (found.kind, major, minor, Some(found.mode))
        }
        (None, Err(reason)) => return Err(host_device(&host_path, reason)),
    };
    let may = |access| node.permissions.is_empty() || node.permissions.contains(access);
    Ok(DeviceNode {
        path: node.path.clone(),
        host_path,
        kind,
        major,
        minor,
        mode: node.file_mode.or(mode),
        uid: node.uid,
        gid: node.gid,
        read: may('r'),
        write: may('w'),
    })
}

fn kind_of(text: &str) -> Option<DeviceKind> {
    match text {
        "c" | "u" => Some(DeviceKind::Char),
        "b" => Some(DeviceKind::Block),
        "p" => Some(DeviceKind::Fifo),
        _ => None,
    }
}

/// What this machine knows of a node.
struct Found {
    kind: DeviceKind,
    major: u32,
    minor: u32,
    mode: u32,
}

fn on_this_machine(path: &Path) -> Result<Found, String> {
    let metadata = std::fs::symlink_metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    })?;
    let kind = match metadata.mode() & libc::S_IFMT {
        libc::S_IFCHR => DeviceKind::Char,
        libc::S_IFBLK => DeviceKind::Block,
        libc::S_IFIFO => DeviceKind::Fifo,
        _ => return Err("not a device node".to_owned()),
    };
    let (major, minor) = match kind {
        DeviceKind::Fifo => (0, 0),
        _ => (libc::major(metadata.rdev()), libc::minor(metadata.rdev())),
    };
    Ok(Found {
        kind,
        major,
        minor,
        mode: metadata.mode() & 0o7777,
    })
}

fn host_device(path: &Path, reason: String) -> CdiError {
    CdiError::HostDevice {
        path: path.display().to_string(),
        reason,
    }
}

/// A mount whose options are understood; else what it asks for.
fn host_mount(mount: &SpecMount) -> Result<HostMount, String> {
    let at = &mount.container_path;
    let tmpfs = match mount.kind.as_str() {
        "" | "none" | "bind" => false,
        "tmpfs" => true,
        other => return Err(format!("a mount of type {other:?} at {at}")),
    };
    let mut made = HostMount {
        host_path: PathBuf::from(&mount.host_path),
        path: at.clone(),
        tmpfs,
        readonly: false,
        nosuid: false,
        nodev: false,
        noexec: false,
    };
    for option in &mount.options {
        match option.as_str() {
            "ro" => made.readonly = true,
            "rw" => made.readonly = false,
            "nosuid" => made.nosuid = true,
            "suid" => made.nosuid = false,
            "nodev" => made.nodev = true,
            "dev" => made.nodev = false,
            "noexec" => made.noexec = true,
            "exec" => made.noexec = false,
            // How it is made, and what a mount in a namespace that ends with the step cannot tell.
            "bind" | "rbind" | "defaults" | "private" | "rprivate" | "slave" | "rslave"
            | "relatime" | "norelatime" | "noatime" | "atime" | "nodiratime" | "async" => {}
            other => return Err(format!("the mount option {other:?} at {at}")),
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_completed_from_this_machine() {
        let node = device_node(&SpecNode {
            path: "/dev/nothing".to_owned(),
            host_path: "/dev/null".to_owned(),
            permissions: "r".to_owned(),
            ..SpecNode::default()
        });
        let node = node.unwrap();
        assert_eq!(
            (node.kind, node.major, node.minor),
            (DeviceKind::Char, 1, 3)
        );
        assert_eq!(node.mode, Some(0o666));
        assert!(node.read && !node.write);
    }

    #[test]
    fn nodes_that_are_described_whole_need_not_be_there() {
        let mut described = SpecNode {
            path: "/dev/not-on-any-machine".to_owned(),
            kind: "b".to_owned(),
            major: 7,
            minor: 5,
            file_mode: Some(0o600),
            ..SpecNode::default()
        };
        let node = device_node(&described).unwrap();
        assert_eq!(
            (node.kind, node.major, node.minor),
            (DeviceKind::Block, 7, 5)
        );
        assert_eq!(node.mode, Some(0o600));
        described.major = 0;
        let error = device_node(&described).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to stat CDI host device \"/dev/not-on-any-machine\": no such file or directory"
        );
    }

    #[test]
    fn what_a_step_cannot_be_given_is_named() {
        let edits = |text: &str| -> ContainerEdits { serde_json::from_str(text).unwrap() };
        for (text, what) in [
            (
                r#"{"hooks": [{"hookName": "createContainer", "path": "/bin/x", "args": ["x"], "timeout": 1}]}"#,
                "the hook createContainer /bin/x",
            ),
            (r#"{"intelRdt": {}}"#, "intelRdt"),
            (r#"{"netDevices": [{}]}"#, "netDevices"),
            (
                r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "nfs"}]}"#,
                "a mount of type \"nfs\" at /b",
            ),
            (
                r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["odd"]}]}"#,
                "the mount option \"odd\" at /b",
            ),
        ] {
            let error = Edits::default().add("v/c=d", &edits(text)).unwrap_err();
            let expected = format!("device v/c=d needs {what}, which is not supported");
            assert_eq!(error.to_string(), expected);
        }
    }
}
