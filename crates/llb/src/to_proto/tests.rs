use super::*;

#[test]
fn a_build_operation_has_its_input_even_if_that_is_the_first() {
    let op = BuildOp {
        builder: -1,
        inputs: [("a".to_owned(), 0), ("b".to_owned(), 1)].into(),
        attrs: [("f".to_owned(), String::new())].into(),
    };
    let bytes = marshal_op(&Op::Build(op));
    let minus_one = b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    let inputs = b"\x12\x05\x0a\x01a\x12\x00\x12\x07\x0a\x01b\x12\x02\x08\x01";
    let attrs = b"\x22\x05\x0a\x01f\x12\x00";
    let body = [&minus_one[..], inputs, attrs].concat();
    assert_eq!(bytes, [&[0x2a, body.len() as u8], body.as_slice()].concat());
    let decoded = pb::Op::decode(bytes.as_slice()).unwrap();
    let Some(pb::op::Op::Build(build)) = decoded.op else {
        panic!("{decoded:?}");
    };
    assert_eq!((build.builder, build.inputs["b"].input), (-1, 1));
    assert_eq!(
        (build.inputs["a"].input, build.attrs["f"].as_str()),
        (0, "")
    );
}

#[test]
fn an_agent_s_mount_has_the_output_that_stock_leaves_there() {
    let wire = pb::Mount {
        input: -1,
        dest: "/agent".to_owned(),
        mount_type: pb::MountType::Ssh as i32,
        ssh_opt: Some(pb::SshOpt::default()),
        ..pb::Mount::default()
    };
    let mount = crate::mount_from_proto(wire.clone(), 0).unwrap();
    assert_eq!(mount.output, None);
    assert_eq!(mount_to_proto(&mount), wire);
}

#[test]
fn no_key_travels_without_its_value() {
    let with_empty = |infos| pb::Source {
        infos,
        locations: [
            ("none".to_owned(), pb::Locations::default()),
            (
                "one".to_owned(),
                pb::Locations {
                    locations: vec![pb::Location::default()],
                },
            ),
        ]
        .into(),
    };
    let inner = pb::Definition {
        source: Some(with_empty(Vec::new())),
        ..pb::Definition::default()
    };
    let info = pb::SourceInfo {
        definition: Some(inner),
        ..pb::SourceInfo::default()
    };
    let mut outer = pb::Definition {
        source: Some(with_empty(vec![info])),
        ..pb::Definition::default()
    };
    drop_empty_locations(&mut outer);
    let outer = outer.source.unwrap();
    let inner = outer.infos[0].definition.clone().unwrap().source.unwrap();
    for source in [outer, inner] {
        assert_eq!(source.locations.keys().collect::<Vec<_>>(), ["one"]);
    }
}
