//! Generates the gRPC code of `proto/` without a system protoc.

use std::path::Path;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let include = "../proto";
    println!("cargo:rerun-if-changed={include}");
    let shard = protox::compile(["shard/v1/shard.proto"], [include])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(shard)?;
    let public = protox::compile(["penstock/v1/generation.proto"], [include])?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    // For reflection.
    std::fs::write(
        Path::new(&out).join("penstock.v1.bin"),
        public.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(public)?;
    Ok(())
}
