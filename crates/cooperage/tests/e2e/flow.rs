//! Much data both ways through the one stream of `docker exec`.

use std::path::Path;

use testkit::{Release, Tool};

use crate::workshop::{Workshop, text};

const FILES: usize = 20_000;
const FILE_BYTES: usize = 15_000;

#[test]
fn twenty_thousand_files_go_in_and_come_out_on_engine_20() {
    files_go_in_and_come_out(&Workshop::with(Release::Debian), |shop| {
        shop.cooperage.clone()
    });
}

#[test]
fn twenty_thousand_files_go_in_and_come_out_on_engine_28() {
    files_go_in_and_come_out(&Workshop::with(Release::Newest), |shop| {
        shop.cooperage.clone()
    });
}

#[test]
fn twenty_thousand_files_go_in_and_come_out_with_the_stock_client() {
    files_go_in_and_come_out(&Workshop::with(Release::Debian), Workshop::stock);
}

fn files_go_in_and_come_out(shop: &Workshop, client: impl Fn(&Workshop) -> Tool) {
    let context = shop.context(
        "many",
        &[("Dockerfile", "FROM scratch\nCOPY files /files\n")],
    );
    for number in 0..FILES {
        let folder = Path::new(&context).join(format!("files/{}", number / 200));
        if number % 200 == 0 {
            std::fs::create_dir_all(&folder).unwrap();
        }
        std::fs::write(folder.join(number.to_string()), content(number)).unwrap();
    }
    shop.cooperage
        .ok(&["create", "--name", "c", "--use", "--bootstrap"]);
    let out = shop.lab.directory().join("out");
    let output = format!("type=local,dest={}", text(&out));
    let build = [
        "build",
        "--builder=c",
        "--progress=plain",
        "-o",
        &output,
        &context,
    ];
    client(shop).ok(&build);
    for number in 0..FILES {
        let path = out.join(format!("files/{}/{number}", number / 200));
        let found = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(found == content(number), "{} differs", path.display());
    }
}

/// Content that is different in every file and that nothing can compress to nearly nothing.
fn content(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    (0..FILE_BYTES)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}
