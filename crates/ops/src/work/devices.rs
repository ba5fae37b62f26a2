//! The devices of a step: what the files that describe them say is done to its process.

use std::path::PathBuf;
use std::sync::Arc;

use cdi::{CdiError, Edits};
use diag::{Context, Error, Result};
use executor::{DeviceKind, DeviceNode, MountFlags, MountSource, ProcessMount, ProcessSpec};
use llb::ExecOp;

use super::parts::{Parts, blocking};
use crate::clean;

/// Permission bits of a node that nobody says any of, as runtimes have it.
const MODE_DEFAULT: u32 = 0o666;

/// Gives a process the devices that its op asks for. Optional ones that are not there are left out.
///
/// # Errors
/// A device that is not there, or that needs what a step cannot be given.
pub(super) async fn add_devices(
    parts: &Arc<Parts>,
    op: &ExecOp,
    spec: &mut ProcessSpec,
) -> Result<()> {
    if op.cdi_devices.is_empty() {
        return Ok(());
    }
    let (parts, asked) = (parts.clone(), op.cdi_devices.clone());
    let edits = blocking(move || find(parts.devices.as_ref(), &asked)).await;
    apply(edits.context("CDI device injection failed")?, spec);
    Ok(())
}

/// What has to be done for devices by their names with their `optional` flags. Blocking.
fn find(registry: Option<&cdi::Registry>, asked: &[(String, bool)]) -> Result<Edits> {
    let devices = registry.map(cdi::Registry::scan).unwrap_or_default();
    let edits = devices
        .find_all(asked)
        .and_then(|names| devices.edits(&names));
    edits.map_err(|error| not_to_be_had(error, &devices))
}

/// The error of a device, with what is wrong with descriptions if one is missing.
pub fn not_to_be_had(error: CdiError, devices: &cdi::Devices) -> Error {
    let missing = matches!(error, CdiError::NotRegistered(_));
    let mut error = Error::from(error);
    for fault in devices.faults().iter().filter(|_| missing) {
        let path = fault.path.display();
        error = error.hint(format!("{path} cannot be used: {}", fault.reason));
    }
    error
}

fn apply(edits: Edits, spec: &mut ProcessSpec) {
    spec.env.extend(edits.env);
    let (uid, gid) = (spec.user.uid, spec.user.gid);
    let nodes = edits.nodes.into_iter().map(|node| {
        let made = DeviceNode {
            kind: match node.kind {
                cdi::DeviceKind::Char => DeviceKind::Char,
                cdi::DeviceKind::Block => DeviceKind::Block,
                cdi::DeviceKind::Fifo => DeviceKind::Fifo,
            },
            major: node.major,
            minor: node.minor,
            mode: node.mode.unwrap_or(MODE_DEFAULT),
            uid: node.uid.unwrap_or(uid),
            gid: node.gid.unwrap_or(gid),
            read: node.read,
            write: node.write,
            host_path: node.host_path,
        };
        ProcessMount::new(MountSource::Device(made), node.path)
    });
    let mounts = edits.mounts.into_iter().map(|mount| {
        let source = match mount.tmpfs {
            true => MountSource::Tmpfs { size: 0 },
            false => MountSource::Bind(mount.host_path),
        };
        let mut made = ProcessMount::new(source, mount.path);
        made.readonly = mount.readonly;
        made.flags = MountFlags {
            nosuid: mount.nosuid,
            nodev: mount.nodev,
            noexec: mount.noexec,
        };
        made
    });
    for mount in nodes.chain(mounts) {
        let dest = clean(&mount.dest);
        spec.mounts.retain(|known| clean(&known.dest) != dest);
        spec.mounts.push(mount);
    }
    // What is further up comes first, so that nothing is hidden by what holds it.
    let depth = |mount: &ProcessMount| PathBuf::from(clean(&mount.dest)).components().count();
    spec.mounts.sort_by_key(depth);
    for gid in edits.additional_gids {
        if !spec.user.additional_gids.contains(&gid) {
            spec.user.additional_gids.push(gid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str) -> cdi::HostMount {
        cdi::HostMount {
            host_path: "/host".into(),
            path: path.to_owned(),
            tmpfs: false,
            readonly: true,
            nosuid: false,
            nodev: true,
            noexec: false,
        }
    }

    #[test]
    fn a_device_s_mounts_take_the_places_of_others_and_lie_above_what_holds_them() {
        let mut spec = ProcessSpec::default();
        for dest in ["/a/b/c", "/x"] {
            spec.mounts.push(ProcessMount::bind("/step", dest));
        }
        let edits = Edits {
            env: vec!["A=1".to_owned()],
            mounts: vec![mount("/a"), mount("/x/")],
            additional_gids: vec![5, 5],
            ..Edits::default()
        };
        apply(edits, &mut spec);
        let shown = |mount: &ProcessMount| format!("{} {}", mount.dest, mount.readonly);
        let mounts: Vec<String> = spec.mounts.iter().map(shown).collect();
        assert_eq!(mounts, ["/a true", "/x/ true", "/a/b/c false"]);
        assert_eq!(spec.user.additional_gids, [5]);
        assert_eq!(spec.env, ["A=1"]);
    }

    #[test]
    fn a_node_that_says_no_owner_is_the_users() {
        let mut spec = ProcessSpec::default();
        (spec.user.uid, spec.user.gid) = (1000, 100);
        let node = cdi::DeviceNode {
            path: "/dev/x".to_owned(),
            host_path: "/dev/x".into(),
            kind: cdi::DeviceKind::Char,
            major: 1,
            minor: 3,
            mode: None,
            uid: None,
            gid: Some(7),
            read: true,
            write: true,
        };
        let edits = Edits {
            nodes: vec![node],
            ..Edits::default()
        };
        apply(edits, &mut spec);
        let MountSource::Device(made) = &spec.mounts[0].source else {
            panic!("{:?}", spec.mounts);
        };
        assert_eq!((made.uid, made.gid, made.mode), (1000, 7, 0o666));
    }

    #[test]
    fn without_a_registry_optional_devices_are_left_out() {
        let asked = |optional| [("vendor.example/disk=a".to_owned(), optional)];
        assert_eq!(find(None, &asked(true)).unwrap(), Edits::default());
        assert_eq!(
            find(None, &asked(false)).unwrap_err().to_string(),
            "required device \"vendor.example/disk=a\" is not registered"
        );
    }
}
