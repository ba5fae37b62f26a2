//! What gateway clients hear of a failed process besides its error: the op, and references to its
//! files before and after, from which they can start containers to look around.

use bollard_buildkit_proto::google::protobuf::Any;
use diag::Error;
use oci::Digest;
use ops::work::{FailedStep, Output};
use proto::pb;
use proto::prost::Message;
use serde_json::{Value, json};
use tonic::Status;

use crate::error_length::DETAIL_BYTES_MAX;
use crate::errors::{from_message, to_rpc_status};
use crate::job::Job;

/// The detail that stock clients read.
const SOLVE: &str = "github.com/moby/buildkit/errdefs.Solve+json";

/// The status of an error of a build, with the files of the failed process if they were kept.
pub fn to_status(job: &Job, error: &Error) -> Status {
    let mut status = to_rpc_status(error);
    if let Some(detail) = detail(job, error) {
        let value = detail.to_string().into_bytes();
        // An op that is too long for headers costs the look around, never the error.
        if value.len() <= DETAIL_BYTES_MAX {
            status.details.push(Any {
                type_url: SOLVE.to_owned(),
                value,
            });
        }
    }
    from_message(status)
}

fn detail(job: &Job, error: &Error) -> Option<Value> {
    let digest: Digest = error.failed_vertex()?.parse().ok()?;
    let vertex = job.vertex(&digest)?;
    let FailedStep { before, after } = job.running().failure(&digest)?;
    let ids = |outputs: Vec<Option<Output>>| -> Vec<String> {
        let keep = |output: Option<Output>| output.map(|output| job.keep_output(output));
        outputs
            .into_iter()
            .map(|output| keep(output).unwrap_or_default())
            .collect()
    };
    let op = pb::Op::decode(vertex.raw.clone()).ok()?;
    Some(json!({
        "inputIDs": ids(before),
        "mountIDs": ids(after),
        "op": op_json(&op)?,
        "description": vertex.meta.description,
    }))
}

/// A process op in protobuf's JSON, under the names of its fields.
fn op_json(op: &pb::Op) -> Option<Value> {
    let Some(pb::op::Op::Exec(exec)) = &op.op else {
        return None;
    };
    let inputs = op
        .inputs
        .iter()
        .map(|input| json!({ "digest": input.digest, "index": input.index }));
    let meta = exec.meta.clone().unwrap_or_default();
    let hosts = meta
        .extra_hosts
        .iter()
        .map(|host| json!({ "Host": host.host, "IP": host.ip }));
    let limits = meta
        .ulimit
        .iter()
        .map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard }));
    let secrets = exec
        .secretenv
        .iter()
        .map(|secret| json!({ "ID": secret.id, "name": secret.name, "optional": secret.optional }));
    Some(json!({
        "inputs": inputs.collect::<Vec<_>>(),
        "exec": {
            "meta": {
                "args": meta.args,
                "env": meta.env,
                "cwd": meta.cwd,
                "user": meta.user,
                "hostname": meta.hostname,
                "extraHosts": hosts.collect::<Vec<_>>(),
                "ulimit": limits.collect::<Vec<_>>(),
                "cgroupParent": meta.cgroup_parent,
                "removeMountStubsRecursive": meta.remove_mount_stubs_recursive,
                "validExitCodes": meta.valid_exit_codes,
            },
            "mounts": exec.mounts.iter().map(mount_json).collect::<Vec<_>>(),
            "network": exec.network,
            "security": exec.security,
            "secretenv": secrets.collect::<Vec<_>>(),
        },
    }))
}

fn mount_json(mount: &pb::Mount) -> Value {
    let mut value = json!({
        "input": mount.input,
        "selector": mount.selector,
        "dest": mount.dest,
        "output": mount.output,
        "readonly": mount.readonly,
        "mountType": mount.mount_type,
        "contentCache": mount.content_cache,
    });
    if let Some(tmpfs) = &mount.tmpfs_opt {
        value["TmpfsOpt"] = json!({ "size": tmpfs.size });
    }
    if let Some(cache) = &mount.cache_opt {
        value["cacheOpt"] = json!({ "ID": cache.id, "sharing": cache.sharing });
    }
    if let Some(secret) = &mount.secret_opt {
        value["secretOpt"] = json!({
            "ID": secret.id,
            "uid": secret.uid,
            "gid": secret.gid,
            "mode": secret.mode,
            "optional": secret.optional,
        });
    }
    if let Some(ssh) = &mount.ssh_opt {
        value["SSHOpt"] = json!({
            "ID": ssh.id,
            "uid": ssh.uid,
            "gid": ssh.gid,
            "mode": ssh.mode,
            "optional": ssh.optional,
        });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_in_the_names_of_the_wire() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["a".into()],
                cwd: "/w".into(),
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                mount_type: pb::MountType::Cache.into(),
                cache_opt: Some(pb::CacheOpt {
                    id: "c".into(),
                    sharing: 2,
                }),
                ..pb::Mount::default()
            }],
            ..pb::ExecOp::default()
        };
        let op = pb::Op {
            op: Some(pb::op::Op::Exec(exec)),
            ..pb::Op::default()
        };
        let json = op_json(&op).unwrap();
        assert_eq!(json["exec"]["meta"]["cwd"], "/w");
        assert_eq!(json["exec"]["mounts"][0]["mountType"], 3);
        assert_eq!(json["exec"]["mounts"][0]["cacheOpt"]["sharing"], 2);
        assert!(op_json(&pb::Op::default()).is_none());
    }
}
