use super::*;

fn parse(kind: &str, attrs: &[(&str, &str)]) -> Result<(ExporterSpec, Vec<String>)> {
    let attrs = attrs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    ExporterSpec::parse(kind, &attrs)
}

#[test]
fn an_image_with_everything_is_read() {
    let (spec, unknown) = parse(
        "image",
        &[
            ("name", "a,b:c"),
            ("push", ""),
            ("registry.insecure", "T"),
            ("compression", "zstd"),
            ("compression-level", "19"),
            ("force-compression", "true"),
            ("annotation.x", "y"),
            ("source-date-epoch", "7"),
            ("rewrite-timestamp", "1"),
            ("containerimage.config", "{}"),
            ("bogus", "1"),
        ],
    )
    .unwrap();
    let ExporterSpec::Image(image, push) = spec else {
        panic!("{spec:?}")
    };
    assert_eq!(image.name, "a,b:c");
    assert_eq!(
        image.compression,
        LayerCompression {
            kind: Compression::Zstd,
            level: Some(19),
            force: true
        }
    );
    assert_eq!(image.epoch, Some(Some(7)));
    assert!(image.rewrite_timestamp && image.uses_oci_types());
    assert!(push.push && push.insecure && push.store && !push.by_digest);
    assert_eq!(image.metadata["containerimage.config"], b"{}");
    assert_eq!(unknown, ["bogus"]);
}

#[test]
fn wrong_values_are_refused_in_stocks_words() {
    for (kind, key, value, text) in [
        (
            "image",
            "push",
            "maybe",
            "non-bool value specified for push: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
        (
            "oci",
            "compression",
            "lz4",
            "unsupported compression type lz4",
        ),
        (
            "docker",
            "source-date-epoch",
            "now",
            "invalid source-date-epoch: strconv.ParseInt: parsing \"now\": invalid syntax",
        ),
        (
            "local",
            "mode",
            "move",
            "invalid local exporter mode \"move\"",
        ),
        (
            "nowhere",
            "x",
            "y",
            "exporter \"nowhere\" could not be found",
        ),
    ] {
        let error = parse(kind, &[(key, value)]).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
    let both = [("compression", "zstd"), ("oci-mediatypes", "false")];
    assert_eq!(
        parse("image", &both).unwrap_err().to_string(),
        "exporter option \"compression=zstd\" conflicts with \"oci-mediatypes=false\""
    );
}

#[test]
fn files_have_their_own_attributes() {
    let (spec, unknown) = parse(
        "local",
        &[
            ("platform-split", "false"),
            ("mode", "Delete"),
            ("dest", "x"),
        ],
    )
    .unwrap();
    let expected = FilesAttrs {
        platform_split: Some(false),
        delete: true,
        ..Default::default()
    };
    assert_eq!(spec, ExporterSpec::Local(expected));
    assert!(unknown.is_empty());
}
