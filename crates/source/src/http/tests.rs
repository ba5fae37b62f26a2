use std::os::unix::fs::MetadataExt;

use layers::Backend;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;

/// A web server with one file; it notes down what it was asked.
#[derive(Default)]
struct Web {
    body: Mutex<String>,
    headers: Mutex<Vec<(&'static str, String)>>,
    status: Mutex<Option<u16>>,
    without_etag: Mutex<bool>,
    asked: Mutex<Vec<String>>,
    authorization: Mutex<Vec<String>>,
}

impl Web {
    fn etag(&self) -> String {
        format!("\"{}\"", &Digest::of(self.body.lock().as_str()).hex()[..8])
    }

    fn answer(&self, request: &str) -> String {
        let method = request.split(' ').next().unwrap_or_default().to_owned();
        let field = |name: &str| {
            let line = request
                .lines()
                .find(|line| line.to_ascii_lowercase().starts_with(name))?;
            Some(line.split_once(": ")?.1.to_owned())
        };
        self.authorization.lock().extend(field("authorization"));
        let dated = self
            .headers
            .lock()
            .iter()
            .find(|(name, _)| *name == "Last-Modified")
            .cloned();
        let current = field("if-none-match").as_ref() == Some(&self.etag())
            || (dated.is_some() && field("if-modified-since") == dated.map(|(_, time)| time));
        self.asked.lock().push(method.clone());
        let status = match *self.status.lock() {
            Some(status) => status,
            None if current => 304,
            None => 200,
        };
        let body = match status {
            200 => self.body.lock().clone(),
            _ => String::new(),
        };
        let mut head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        if !*self.without_etag.lock() {
            head.push_str(&format!("ETag: W/{}\r\n", self.etag()));
        }
        for (name, value) in &*self.headers.lock() {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = if method == "HEAD" { "" } else { body.as_str() };
        format!("{head}\r\n{body}")
    }

    async fn start(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let web = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let answer = web.answer(&String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        format!("http://{address}/dir/file%20one.txt?x=1")
    }
}

struct Nobody;

#[async_trait]
impl HttpAuthorization for Nobody {
    async fn authorization(&self) -> Result<Option<Secret<String>>> {
        Ok(None)
    }
}

struct Known;

#[async_trait]
impl HttpAuthorization for Known {
    async fn authorization(&self) -> Result<Option<Secret<String>>> {
        Ok(Some(Secret::new("Bearer abc\n".to_owned())))
    }
}

struct Site {
    _dir: tempfile::TempDir,
    layers: LayerStore,
    source: HttpSource,
    web: Arc<Web>,
    request: HttpRequest,
}

async fn site(body: &str) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let layers = LayerStore::open(dir.path().join("layers"), Backend::Auto).unwrap();
    let source = HttpSource::open(dir.path().join("http"), layers.clone()).unwrap();
    let web = Arc::new(Web::default());
    *web.body.lock() = body.to_owned();
    let url = web.start().await;
    Site {
        _dir: dir,
        layers,
        source,
        web,
        request: HttpRequest {
            url,
            ..HttpRequest::default()
        },
    }
}

async fn get(site: &Site) -> Result<(HttpPin, LayerStack)> {
    let pin = site.source.pin(&site.request, &Nobody).await?;
    let (stack, _) = site.source.fetch(&site.request, &pin, &Nobody).await?;
    Ok((pin, stack))
}

#[tokio::test]
async fn a_file_is_fetched_once_and_asked_for_with_its_validator() {
    let site = site("one").await;
    let time = "Fri, 15 Apr 2022 05:20:00 GMT".to_owned();
    site.web.headers.lock().push(("Last-Modified", time));
    let (pin, stack) = get(&site).await.unwrap();
    assert_eq!(pin.filename, "file one.txt");
    assert_eq!(pin.digest, Digest::of("one"));
    let mounted = site.layers.mount(&stack).unwrap();
    let file = mounted.path().join("file one.txt");
    let meta = std::fs::metadata(&file).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o600, 1_650_000_000));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    let (again, same) = get(&site).await.unwrap();
    assert_eq!((again.digest, same), (pin.digest, stack.clone()));
    assert_eq!(*site.web.asked.lock(), ["GET", "HEAD"]);
    *site.web.body.lock() = "two".into();
    let (changed, other) = get(&site).await.unwrap();
    assert_eq!(changed.digest, Digest::of("two"));
    assert_ne!(other, stack);
    assert_eq!(*site.web.asked.lock(), ["GET", "HEAD", "HEAD", "GET"]);
}

#[tokio::test]
async fn a_file_with_a_checksum_is_fetched_when_it_is_needed_and_must_be_that() {
    let mut site = site("one").await;
    site.request.checksum = Some(Digest::of("one"));
    let pin = site.source.pin(&site.request, &Nobody).await.unwrap();
    assert!(site.web.asked.lock().is_empty());
    let first = site.source.fetch(&site.request, &pin, &Nobody).await;
    let second = site.source.fetch(&site.request, &pin, &Nobody).await;
    assert_eq!(first.unwrap().0, second.unwrap().0);
    assert_eq!(site.web.asked.lock().len(), 1);
    let layers = site.layers.list().unwrap().len();
    site.request.checksum = Some(Digest::of("other"));
    let error = get(&site).await.map(drop).unwrap_err();
    let expected = format!(
        "digest mismatch {}: {}",
        Digest::of("one"),
        Digest::of("other")
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(site.layers.list().unwrap().len(), layers);
}

#[tokio::test]
async fn a_file_is_made_as_asked_for() {
    let mut site = site("one").await;
    site.request.filename = "../../name".into();
    site.request.mode = Some(0o751);
    (site.request.uid, site.request.gid) = (7, 8);
    let (pin, stack) = get(&site).await.unwrap();
    assert_eq!(pin.filename, "name");
    let mounted = site.layers.mount(&stack).unwrap();
    let meta = std::fs::metadata(mounted.path().join("name")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o751, 7, 8)
    );
    assert_eq!(meta.mtime(), 0);
}

#[tokio::test]
async fn an_answer_that_is_no_success_is_an_error_and_leaves_nothing() {
    let site = site("one").await;
    *site.web.status.lock() = Some(404);
    let error = get(&site).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(
        error.to_string().contains("invalid response status 404"),
        "{error}"
    );
    assert!(site.layers.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_is_told_who_asks() {
    let site = site("one").await;
    site.source.pin(&site.request, &Known).await.unwrap();
    assert_eq!(*site.web.authorization.lock(), ["Bearer abc"]);
}

#[tokio::test]
async fn a_time_of_change_is_as_good_as_a_validator_once_it_is_old() {
    let site = site("one").await;
    *site.web.without_etag.lock() = true;
    let time = |web: &Web, modified: &str, now: &str| {
        *web.headers.lock() = vec![("Last-Modified", modified.into()), ("Date", now.into())];
    };
    let (early, late) = (
        "Fri, 15 Apr 2022 05:20:00 GMT",
        "Fri, 15 Apr 2022 05:21:00 GMT",
    );
    time(&site.web, early, early);
    let (_, first) = get(&site).await.unwrap();
    // The file may have changed within that second.
    let (_, second) = get(&site).await.unwrap();
    assert_ne!(first, second);
    time(&site.web, early, late);
    let (_, third) = get(&site).await.unwrap();
    let (_, fourth) = get(&site).await.unwrap();
    assert_eq!(third, fourth);
    time(&site.web, late, late);
    *site.web.body.lock() = "two".into();
    let (pin, _) = get(&site).await.unwrap();
    assert_eq!(pin.digest, Digest::of("two"));
    assert_eq!(*site.web.asked.lock(), ["GET"; 5]);
}

#[tokio::test]
async fn a_secret_for_one_server_does_not_follow_to_another() {
    let (site, other) = (site("one").await, site("two").await);
    // The same machine by another name is another server.
    let elsewhere = other.request.url.replace("127.0.0.1", "localhost");
    *site.web.status.lock() = Some(302);
    site.web.headers.lock().push(("Location", elsewhere));
    let pin = site.source.pin(&site.request, &Known).await.unwrap();
    assert_eq!(pin.digest, Digest::of("two"));
    assert_eq!(*site.web.authorization.lock(), ["Bearer abc"]);
    assert!(other.web.authorization.lock().is_empty());
}

#[tokio::test]
async fn a_file_has_other_checksums_also_with_a_suffix() {
    let site = site("one").await;
    let pin = site.source.pin(&site.request, &Nobody).await.unwrap();
    let sum = async |algorithm, suffix: &[u8]| {
        let sum = site
            .source
            .checksum(&site.request, &pin, &Nobody, algorithm, suffix.into());
        sum.await.map_err(|error| error.to_string())
    };
    let sha256 = sum(ChecksumAlgorithm::Sha256, b"s").await.unwrap();
    assert_eq!(sha256, Digest::of("ones").to_string());
    let sha512 = sum(ChecksumAlgorithm::Sha512, b"").await.unwrap();
    assert!(
        sha512.starts_with("sha512:") && sha512.len() == 7 + 128,
        "{sha512}"
    );
    assert!(sum(ChecksumAlgorithm::Sha384, &[0; 5000]).await.is_err());
}

#[test]
fn names_come_from_the_request_the_server_or_the_address() {
    let request = |url: &str, filename: &str| HttpRequest {
        url: url.into(),
        filename: filename.into(),
        ..HttpRequest::default()
    };
    let name = |url: &str, filename: &str, disposition: &'static str| {
        let value = HeaderValue::from_static(disposition);
        let value = (!disposition.is_empty()).then_some(value);
        file_name(&request(url, filename), value.as_ref())
    };
    assert_eq!(name("http://h/a/b?c", "", ""), "b");
    assert_eq!(name("http://h/a/b/", "", ""), "b");
    assert_eq!(name("http://h/", "", ""), "download");
    assert_eq!(name("http://h/a", "x/y", "attachment; filename=z"), "y");
    assert_eq!(name("http://h/a", "", "attachment; filename=z"), "z");
    let quoted = r#"attachment; size=3; filename="../s;p \"q\".txt""#;
    assert_eq!(name("http://h/a", "", quoted), r#"s;p "q".txt"#);
    let both = "attachment; filename=plain; filename*=UTF-8''a%C3%A4";
    assert_eq!(name("http://h/a", "", both), "aä");
    assert_eq!(name("http://h/a", "", "attachment; filename=d/"), "a");
    let open = r#"attachment; filename="x"#;
    assert_eq!(name("http://h/a", "", open), "a");
    assert_eq!(name("http://h/%2e%2e", "", ""), "download");
}
