//! The committed Rust and descriptors are what the `.proto` files say.

#[path = "../codegen/mod.rs"]
mod codegen;

#[test]
fn committed_code_is_what_the_proto_files_generate() {
    let generated = codegen::generate().expect("the .proto files compile");
    let committed = codegen::read_dir(&codegen::committed_dir()).expect("src/gen is readable");
    let names: Vec<_> = generated.keys().collect();
    assert_eq!(names, committed.keys().collect::<Vec<_>>(), "{HINT}");
    for (name, content) in &generated {
        assert!(
            committed.get(name) == Some(content),
            "src/gen/{name} is out of date: {HINT}"
        );
    }
}

const HINT: &str = "run `cargo run -p outrigger-proto --example regenerate`";
