//! Generates the gRPC code of `proto/` without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let include = "../proto";
    println!("cargo:rerun-if-changed={include}");
    let descriptors = protox::compile(["shard/v1/shard.proto"], [include])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
