use super::*;

#[test]
fn ops_are_written_by_protobufs_mapping() {
    let mount = pb::Mount {
        input: -1,
        dest: "/x".to_owned(),
        mount_type: 3,
        cache_opt: Some(pb::CacheOpt::default()),
        ..pb::Mount::default()
    };
    let exec = pb::ExecOp {
        meta: Some(pb::Meta {
            args: vec!["a".to_owned(), String::new()],
            valid_exit_codes: vec![0, 300],
            ..pb::Meta::default()
        }),
        mounts: vec![mount],
        network: 2,
        ..pb::ExecOp::default()
    };
    let op = pb::Op {
        inputs: vec![pb::Input {
            digest: "sha256:1".to_owned(),
            index: 0,
        }],
        op: Some(pb::op::Op::Exec(exec)),
        constraints: Some(pb::WorkerConstraints::default()),
        ..pb::Op::default()
    };
    assert_eq!(
        message(&op.encode_to_vec(), OP).unwrap().to_string(),
        r#"{"inputs":[{"digest":"sha256:1"}],"exec":{"meta":{"args":["a",""],"validExitCodes":[0,300]},"mounts":[{"input":"-1","dest":"/x","mountType":"CACHE","cacheOpt":{}}],"network":"NONE"},"constraints":{}}"#
    );
    assert_eq!(message(&[0x0a, 5, 1], OP), None);
}

#[test]
fn what_was_chosen_is_written_also_if_it_is_zero() {
    let user = pb::UserOpt {
        user: Some(pb::user_opt::User::ById(0)),
    };
    let owner = pb::ChownOpt {
        user: Some(user),
        group: None,
    };
    let make = pb::FileActionMkFile {
        data: b"<x>".to_vec(),
        mode: -1,
        timestamp: -1,
        owner: Some(owner),
        ..pb::FileActionMkFile::default()
    };
    let action = pb::FileAction {
        action: Some(pb::file_action::Action::Mkfile(make)),
        output: -1,
        ..pb::FileAction::default()
    };
    let op = pb::Op {
        op: Some(pb::op::Op::File(pb::FileOp {
            actions: vec![action],
        })),
        ..pb::Op::default()
    };
    let written = message(&op.encode_to_vec(), OP).unwrap();
    let expected =
        json!({"mode": -1, "data": "PHg+", "owner": {"user": {"byID": 0}}, "timestamp": "-1"});
    assert_eq!(written["file"]["actions"][0]["mkfile"], expected);
    assert_eq!(written["file"]["actions"][0]["output"], "-1");
}

#[test]
fn maps_are_sorted_and_sources_have_their_text() {
    let mut source = pb::Source::default();
    for key in ["b", "a"] {
        let locations = pb::Locations::default();
        source.locations.insert(key.to_owned(), locations);
    }
    source.infos.push(pb::SourceInfo {
        filename: "Dockerfile".to_owned(),
        data: b"FROM".to_vec(),
        ..pb::SourceInfo::default()
    });
    assert_eq!(
        message(&source.encode_to_vec(), SOURCE)
            .unwrap()
            .to_string(),
        r#"{"locations":{"a":{},"b":{}},"infos":[{"filename":"Dockerfile","data":"RlJPTQ=="}]}"#
    );
}
