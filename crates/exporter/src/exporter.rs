//! Carrying out an export.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::sync::Arc;

use content::{ContentError, ContentStore};
use diag::{Error, Result};
use layers::LayerStore;
use oci::{Descriptor, Digest};
use status::{Line, StatusSink};

use crate::attrs::{ExporterSpec, ImageAttrs, PushAttrs};
use crate::commit::{Committer, ExportSource};
use crate::committed::{CommittedImage, normalized_names};
use crate::image::epoch_time;
use crate::image_archive::{ArchiveOptions, write_image_archive};
use crate::sending::{BRIDGE_BUFFER, blocking, send_through};
use crate::target::ClientTarget;
use crate::{files, push};

/// Makes exports; clones share what is under way.
#[derive(Clone)]
pub struct Exporter {
    content: ContentStore,
    layers: LayerStore,
    committer: Committer,
}

/// Who an export is for.
pub struct ExportContext<'a> {
    /// The client's side, if there is a client that takes files.
    pub client: Option<&'a dyn ClientTarget>,
    /// For pushes, with the client's credentials.
    pub registry: &'a registry::Client,
    /// Where statuses go.
    pub statuses: Arc<dyn StatusSink>,
}

/// What came of an export.
pub struct Exported {
    /// For the client: `containerimage.digest`, `containerimage.config.digest`,
    /// `containerimage.descriptor` (base64 JSON), `image.name`.
    pub response: BTreeMap<String, String>,
    /// The image, if one was made; its lease keeps its blobs.
    pub image: Option<CommittedImage>,
}

impl Exporter {
    /// An exporter of what is in these stores.
    pub fn new(content: ContentStore, layers: LayerStore) -> Self {
        Exporter {
            committer: Committer::new(content.clone(), layers.clone()),
            content,
            layers,
        }
    }

    /// Carries out an export of a result.
    pub async fn export(
        &self,
        spec: &ExporterSpec,
        source: &ExportSource,
        context: ExportContext<'_>,
    ) -> Result<Exported> {
        match spec {
            ExporterSpec::Image(attrs, push) => self.image(attrs, push, source, context).await,
            ExporterSpec::Docker(attrs) => {
                if source.multi {
                    return Err(Error::invalid(
                        "docker exporter does not currently support exporting manifest lists",
                    ));
                }
                self.archive(attrs, true, source, context).await
            }
            ExporterSpec::Oci(attrs) => self.archive(attrs, false, source, context).await,
            ExporterSpec::Local(attrs) => {
                let (client, statuses) = (client_of(&context)?, &context.statuses);
                files::export_local(&self.layers, source, attrs, client, statuses).await?;
                Ok(Exported::nothing())
            }
            ExporterSpec::Tar(attrs) => {
                let (client, statuses) = (client_of(&context)?, &context.statuses);
                files::export_tar(&self.layers, source, attrs, client, statuses).await?;
                Ok(Exported::nothing())
            }
        }
    }

    async fn image(
        &self,
        attrs: &ImageAttrs,
        push: &PushAttrs,
        source: &ExportSource,
        context: ExportContext<'_>,
    ) -> Result<Exported> {
        let source = with_metadata(source, attrs);
        let image = self
            .committer
            .commit(&source, attrs, &context.statuses)
            .await?;
        let mut response = image.response(&image.descriptor)?;
        let name = image_name(attrs, push, &source, image.descriptor.digest);
        if !name.is_empty() {
            response.insert("image.name".to_owned(), name.clone());
        }
        if push.push {
            for name in name.split(',').filter(|name| !name.is_empty()) {
                push::push_image(
                    context.registry,
                    &self.content,
                    &image,
                    name,
                    push,
                    &context.statuses,
                )
                .await?;
            }
        }
        Ok(Exported {
            response,
            image: Some(image),
        })
    }

    async fn archive(
        &self,
        attrs: &ImageAttrs,
        docker: bool,
        source: &ExportSource,
        context: ExportContext<'_>,
    ) -> Result<Exported> {
        let source = with_metadata(source, attrs);
        let client = client_of(&context)?;
        let statuses = &context.statuses;
        let mut image = self.committer.commit(&source, attrs, statuses).await?;
        if self.lost_some(&image).await? {
            image = self.committer.commit(&source, attrs, statuses).await?;
        }
        let descriptor = with_created(&image.descriptor, attrs, &source)?;
        let mut response = image.response(&descriptor)?;
        let names = match (attrs.name.as_str(), &source.image_name) {
            ("*", Some(name)) => normalized_names(name)?,
            (name, _) => normalized_names(name)?,
        };
        if !names.is_empty() {
            let texts: Vec<String> = names.iter().map(ToString::to_string).collect();
            response.insert("image.name".to_owned(), texts.join(","));
        }
        if attrs.tar {
            let line = Line::start(statuses, "sending tarball");
            let stream = client.send_file(&response).await;
            let (content, copy) = (self.content.clone(), image.clone());
            let options = ArchiveOptions { names, docker };
            send_through(stream, move |stream| {
                let out = BufWriter::with_capacity(BRIDGE_BUFFER, stream);
                write_image_archive(&content, &copy, &descriptor, &options, out)?
                    .into_inner()
                    .map_err(|error| Error::from(error.into_error()))
            })
            .await?;
            line.finish();
        } else {
            client.send_blobs(&self.content, image.blobs()).await?;
        }
        Ok(Exported {
            response,
            image: Some(image),
        })
    }

    /// Looks at every blob of an image that is about to be sent whole; whether some were damaged on
    /// disk, and so have to be made again. An archive that is half sent cannot be mended.
    async fn lost_some(&self, image: &CommittedImage) -> Result<bool> {
        let (content, blobs) = (self.content.clone(), image.blobs());
        blocking(move || {
            let mut lost = false;
            for blob in blobs {
                match content.open_blob(&blob.digest) {
                    Ok(_) => {}
                    Err(ContentError::Damaged(_)) => lost = true,
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(lost)
        })
        .await
    }
}

impl Exported {
    fn nothing() -> Self {
        Exported {
            response: BTreeMap::new(),
            image: None,
        }
    }
}

fn client_of<'a>(context: &ExportContext<'a>) -> Result<&'a dyn ClientTarget> {
    context
        .client
        .ok_or_else(|| Error::new(diag::Code::FailedPrecondition, "no active sessions"))
}

/// The result with what attributes put in the place of the frontend's metadata.
fn with_metadata(source: &ExportSource, attrs: &ImageAttrs) -> ExportSource {
    let mut source = source.clone();
    for (key, value) in &attrs.metadata {
        if key == "image.name" {
            source.image_name = Some(String::from_utf8_lossy(value).into_owned());
        }
        for platform in &mut source.platforms {
            let is = |wanted: &str| {
                key == wanted
                    || key
                        .strip_prefix(wanted)
                        .and_then(|rest| rest.strip_prefix('/'))
                        == Some(platform.id.as_str())
            };
            if is("containerimage.config") {
                platform.config = Some(value.clone());
            } else if is("containerimage.base.config") {
                platform.base_config = Some(value.clone());
            }
        }
    }
    source
}

/// The names the image gets, separated by commas.
fn image_name(
    attrs: &ImageAttrs,
    push: &PushAttrs,
    source: &ExportSource,
    digest: Digest,
) -> String {
    let mut name = match (attrs.name.as_str(), &source.image_name) {
        ("*", Some(name)) => name.clone(),
        (name, _) => name.to_owned(),
    };
    if !push.dangling_prefix.is_empty() && (!push.dangling_empty_only || name.is_empty()) {
        if !name.is_empty() {
            name.push(',');
        }
        name.push_str(&format!("{}@{digest}", push.dangling_prefix));
    }
    name
}

/// The descriptor as it stands in an archive: with the time it was made.
fn with_created(
    descriptor: &Descriptor,
    attrs: &ImageAttrs,
    source: &ExportSource,
) -> Result<Descriptor> {
    const CREATED: &str = "org.opencontainers.image.created";
    let mut descriptor = descriptor.clone();
    if !descriptor.annotations.contains_key(CREATED) {
        let epoch = match attrs.epoch {
            Some(explicit) => explicit,
            None => source.epoch,
        };
        let time = match epoch {
            Some(epoch) => epoch_time(epoch)?,
            None => jiff::Timestamp::now(),
        };
        let text = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        descriptor.annotations.insert(CREATED.to_owned(), text);
    }
    Ok(descriptor)
}
