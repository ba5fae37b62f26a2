//! Definitions from anywhere: none makes the decoder panic, and what it takes it gives back.

use std::path::Path;

use oci::Digest;
use prost::Message;
use proto::pb;
use testkit::{CountingAllocator, Fuzz};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/definition");

#[test]
fn any_bytes_are_a_definition_or_an_error() {
    Fuzz::new(CORPUS, 4000).run(|bytes| {
        let Ok(definition) = pb::Definition::decode(bytes) else {
            return;
        };
        let Ok(graph) = llb::from_proto(definition) else {
            return;
        };
        let again = llb::from_proto(llb::to_proto(&graph)).unwrap();
        assert_eq!(again.order, graph.order);
        assert_eq!(again.root, graph.root);
        for digest in &graph.order {
            let vertex = graph.vertex(digest).unwrap();
            assert_eq!(Digest::of(&vertex.raw), *digest);
        }
    });
}

/// The corpus was recorded from stock's client (`stock-…`) and from this project's frontend.
#[test]
fn recorded_definitions_come_out_as_they_went_in() {
    for entry in std::fs::read_dir(Path::new(CORPUS)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let definition = pb::Definition::decode(bytes.as_slice()).unwrap();
        let graph = llb::from_proto(definition.clone()).unwrap();
        let again = llb::to_proto(&graph);
        // The order of vertices says nothing but that inputs come before those who read them.
        let sorted = |definition: &pb::Definition| {
            let mut vertices = definition.def.clone();
            vertices.sort();
            vertices
        };
        let name = path.display();
        assert!(sorted(&again) == sorted(&definition), "{name}");
        assert_eq!(again.def.last(), definition.def.last(), "{name}");
        for digest in &graph.order {
            let vertex = graph.vertex(digest).unwrap();
            // Digests are over what came, and what our own encoder makes of the typed op is the same.
            assert_eq!(Digest::of(&vertex.raw), *digest, "{name}");
            let platform = vertex.platform.as_ref();
            let own = llb::marshal_vertex(&vertex.op, &vertex.inputs, platform);
            assert!(own == vertex.raw, "{name} {}", vertex.name());
        }
    }
}
