//! What is asked of the server besides builds; answers are lines of text that two servers can be
//! compared by.

use std::collections::BTreeMap;

use llb::{Graph, Op};
use proto::gateway::{
    ChecksumRequest, EvaluateRequest, InputsRequest, PingRequest, ReadDirRequest, ReadFileRequest,
    ResolveSourceGitRequest, ResolveSourceHttpRequest, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, StatFileRequest, checksum_request::ChecksumAlgo,
};
use proto::pb;
use proto::sourcepolicy::{Policy, PolicyAction, Rule, Selector, Update};

use crate::{Error, Frontend};

impl Frontend {
    /// What a source stands for. Words after it: `object` for the objects of a repository,
    /// `noconfig` for an image without its configuration, `chain` for what is said about it, or `chain:TYPE`
    /// with its attestations of that type, `deny:IDENTIFIER` and `convert:IDENTIFIER>IDENTIFIER` for rules
    /// about sources, `sha512:TEXT` for another checksum of a
    /// file with that text behind it, `NAME=VALUE` for attributes of the source. A source
    /// `context:NAME` is a named context of the client, an OCI layout.
    ///
    /// A refusal is an answer too.
    pub async fn meta(
        &mut self,
        text: &str,
        platform: Option<pb::Platform>,
    ) -> Result<String, Error> {
        let mut words = text.split(' ');
        let identifier = words.next().unwrap_or_default().to_owned();
        let mut request = ResolveSourceMetaRequest {
            platform,
            ..ResolveSourceMetaRequest::default()
        };
        let mut source = self.source(identifier)?;
        for word in words {
            if let Some(suffix) = word.strip_prefix("sha512:") {
                let checksum_request = Some(ChecksumRequest {
                    algo: ChecksumAlgo::Sha512.into(),
                    suffix: suffix.into(),
                });
                request.http = Some(ResolveSourceHttpRequest { checksum_request });
            } else if word == "object" {
                let return_object = true;
                request.git = Some(ResolveSourceGitRequest { return_object });
            } else if word == "noconfig" {
                request.image.get_or_insert_default().no_config = true;
            } else if let Some(kind) = word.strip_prefix("chain") {
                let image = request.image.get_or_insert_default();
                image.attestation_chain = true;
                let kind = kind.strip_prefix(':').map(str::to_owned);
                image.resolve_attestations.extend(kind);
            } else if let Some(rule) = rule(word) {
                let policy = request.source_policies.pop().unwrap_or_default();
                let rules = policy.rules.into_iter().chain([rule]).collect();
                request.source_policies.push(Policy { rules, ..policy });
            } else if let Some((name, value)) = word.split_once('=') {
                source.attrs.insert(name.to_owned(), value.to_owned());
            } else {
                return Err(format!("unknown word {word}").into());
            }
        }
        request.source = Some(source);
        let found = self.gateway.resolve_source_meta(request).await;
        let said = match found {
            Ok(response) => told(response.into_inner()),
            Err(status) => format!("error {}\n", status.message()),
        };
        Ok(format!("== {text}\n{said}"))
    }

    fn source(&self, identifier: String) -> Result<pb::SourceOp, Error> {
        let mut source = pb::SourceOp {
            identifier,
            ..pb::SourceOp::default()
        };
        if source.identifier.starts_with("context:") {
            let given = self
                .options
                .get(&source.identifier)
                .ok_or("no such context")?;
            let layout = given.strip_prefix("oci-layout://").ok_or("not a layout")?;
            let (store, digest) = layout.split_once('@').ok_or("no digest")?;
            let store = store.split(':').next().unwrap_or_default();
            let session = std::env::var("BUILDKIT_SESSION_ID")?;
            source.attrs = [("oci.store", store), ("oci.session", &session)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
            source.identifier = format!("oci-layout://layout.test/base@{digest}");
        }
        Ok(source)
    }

    /// What is at a path of a solved state, by the three calls that there are.
    pub async fn look(&mut self, reference: &str, path: &str) -> Result<String, Error> {
        let mut said = format!("== {path}\n");
        let stat = self.gateway.stat_file(StatFileRequest {
            r#ref: reference.to_owned(),
            path: path.to_owned(),
            ..StatFileRequest::default()
        });
        match stat.await {
            Err(status) => said += &format!("stat: error {}\n", status.message()),
            Ok(stat) => {
                let stat = stat.into_inner().stat.ok_or("no stat")?;
                said += &format!("stat: {}\n", line(&stat));
            }
        }
        let listed = self.gateway.read_dir(ReadDirRequest {
            r#ref: reference.to_owned(),
            dir_path: path.to_owned(),
            ..ReadDirRequest::default()
        });
        match listed.await {
            Err(status) => said += &format!("list: error {}\n", status.message()),
            Ok(listed) => {
                for entry in listed.into_inner().entries {
                    said += &format!("list: {}\n", line(&entry));
                }
            }
        }
        let read = self.gateway.read_file(ReadFileRequest {
            r#ref: reference.to_owned(),
            file_path: path.to_owned(),
            range: Some(proto::gateway::FileRange {
                offset: 1,
                length: 8,
            }),
            ..ReadFileRequest::default()
        });
        match read.await {
            Err(status) => said += &format!("read: error {}\n", status.message()),
            Ok(read) => {
                let data = read.into_inner().data;
                said += &format!("read: {:?}\n", String::from_utf8_lossy(&data));
            }
        }
        Ok(said)
    }

    /// How it goes when a graph is solved without being run, and then run.
    pub async fn evaluate(&mut self, graph: Graph) -> Result<String, Error> {
        let reference = self.solve(graph, false).await?;
        let evaluated = self
            .gateway
            .evaluate(EvaluateRequest { r#ref: reference })
            .await;
        Ok(match evaluated {
            Ok(_) => "evaluated\n".to_owned(),
            Err(status) => format!("evaluated: error {}\n", status.message()),
        })
    }

    /// What the server can do, a line each.
    pub async fn server(&mut self) -> Result<String, Error> {
        let pong = self.gateway.ping(PingRequest {}).await?.into_inner();
        let mut said = String::new();
        for (kind, caps) in [("frontend", pong.frontend_api_caps), ("llb", pong.llb_caps)] {
            for cap in caps.iter().filter(|cap| cap.enabled) {
                said += &format!("{kind} {}\n", cap.id);
            }
        }
        for worker in pong.workers {
            for platform in worker.platforms {
                said += &format!("platform {}/{}\n", platform.os, platform.architecture);
            }
        }
        Ok(said)
    }

    /// The names of the graphs given along, and what each begins with.
    pub async fn inputs(&mut self) -> Result<String, Error> {
        let inputs = self.gateway.inputs(InputsRequest {}).await?.into_inner();
        let mut names: Vec<String> = Vec::new();
        for (name, definition) in inputs.definitions {
            let graph = llb::from_proto(definition)?;
            let source = graph.order.iter().find_map(|digest| {
                let vertex = graph.vertex(digest)?;
                match &vertex.op {
                    Op::Source(source) => Some(source.identifier.clone()),
                    _ => None,
                }
            });
            names.push(format!("input {name} {}\n", source.unwrap_or_default()));
        }
        names.sort();
        Ok(names.concat())
    }
}

/// The rule that a word means.
fn rule(word: &str) -> Option<Rule> {
    let (action, rest) = word.split_once(':')?;
    let (from, to) = rest.split_once('>').unwrap_or((rest, ""));
    let action = match action {
        "deny" => PolicyAction::Deny,
        "convert" => PolicyAction::Convert,
        _ => return None,
    };
    Some(Rule {
        action: action.into(),
        selector: Some(Selector {
            identifier: from.to_owned(),
            ..Selector::default()
        }),
        updates: Some(Update {
            identifier: to.to_owned(),
            ..Update::default()
        }),
    })
}

fn told(response: ResolveSourceMetaResponse) -> String {
    let mut said = String::new();
    if let Some(source) = response.source {
        said += &format!("source {}\n", source.identifier);
    }
    if let Some(image) = response.image {
        let config: Option<serde_json::Value> = serde_json::from_slice(&image.config).ok();
        let architecture = config.as_ref().map(|config| &config["architecture"]);
        said += &format!("image {} {architecture:?}\n", image.digest);
        if let Some(chain) = image.attestation_chain {
            let (root, manifest) = (&chain.root, &chain.image_manifest);
            said += &format!("chain {root} {manifest} {}\n", chain.attestation_manifest);
            for signature in &chain.signature_manifests {
                said += &format!("signature {signature}\n");
            }
            let blobs: BTreeMap<_, _> = chain.blobs.iter().collect();
            for (digest, blob) in blobs {
                let described = blob.descriptor.clone().unwrap_or_default();
                let whole = described.digest == *digest && described.size == blob.data.len() as i64;
                said += &format!("blob {digest} {} {whole}\n", described.media_type);
            }
        }
    }
    if let Some(git) = response.git {
        said += &format!(
            "git {} {} {:?}\n",
            git.r#ref, git.checksum, git.commit_checksum
        );
        for (kind, object) in [("commit", git.commit_object), ("tag", git.tag_object)] {
            said += &format!("{kind} {:?}\n", String::from_utf8_lossy(&object));
        }
    }
    if let Some(http) = response.http {
        let changed = http.last_modified.map(|time| time.seconds);
        said += &format!("http {} {:?} {changed:?}\n", http.checksum, http.filename);
        if let Some(checksum) = http.checksum_response {
            let suffix = String::from_utf8_lossy(&checksum.suffix);
            said += &format!("checksum {} {suffix:?}\n", checksum.digest);
        }
    }
    said
}

fn line(stat: &proto::fsutil::Stat) -> String {
    let (path, mode, size) = (&stat.path, stat.mode, stat.size);
    let (uid, gid, link) = (stat.uid, stat.gid, &stat.linkname);
    format!("{path:?} {mode:o} {size} {uid}:{gid} {link:?}")
}
