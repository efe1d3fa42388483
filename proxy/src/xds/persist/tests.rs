//! Tests of the file.

use super::*;

fn saved() -> Vec<Saved> {
    let one = |kind, name: &str, raw: &'static [u8]| Saved {
        kind,
        name: name.into(),
        version: "v".into(),
        updated: UNIX_EPOCH + Duration::from_secs(5),
        raw: (!raw.is_empty()).then_some(Bytes::from_static(raw)),
    };
    vec![
        one(Kind::Cluster, "a", b"\x00\xff"),
        one(Kind::Listener, "", b""),
        one(Kind::Route, "länger", &[7; 1000]),
    ]
}

#[test]
fn what_is_stored_is_loaded() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(load(dir.path(), "n").expect("no file is no error"), []);
    store(dir.path(), "n", &saved()).expect("stored");
    store(dir.path(), "n", &saved()).expect("replaced");
    assert_eq!(load(dir.path(), "n").expect("loaded"), saved());
    let names = fs::read_dir(dir.path()).expect("listed").count();
    assert_eq!(names, 1, "nothing is left beside it");
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(dir.path().join(FILE))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_file_is_moved_aside_and_says_why() {
    let good = encode("n", &saved());
    let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|at| good[..at].to_vec()).collect();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 0x40;
        cases.push(flipped);
    }
    cases.push(vec![0xff; 100]);
    for case in &cases {
        assert!(decode(case.clone(), "n").is_err());
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(FILE), &cases[40]).expect("written");
    let error = load(dir.path(), "n").expect_err("damaged");
    assert!(error.to_string().contains("moved aside"), "{error}");
    assert_eq!(load(dir.path(), "n").expect("out of the way"), []);
    assert!(dir.path().join(FILE).with_extension("damaged").exists());
}

#[test]
fn another_nodes_file_is_not_used() {
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), "one", &saved()).expect("stored");
    assert!(load(dir.path(), "two").is_err());
}

#[test]
fn a_lying_length_does_not_allocate() {
    let mut body = BytesMut::new();
    put(&mut body, b"n");
    body.put_u8(0);
    body.put_u64(0);
    body.put_u32(u32::MAX);
    let mut file = Vec::from(MAGIC);
    file.put_u64(checksum(&body));
    file.put_slice(&body);
    assert_eq!(decode(file, "n"), Err("ends too early"));
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_with_its_path() {
    let error = store(Path::new("/nonexistent/dir"), "n", &saved()).expect_err("no directory");
    assert!(
        error.to_string().starts_with("/nonexistent/dir/"),
        "{error}"
    );
}
