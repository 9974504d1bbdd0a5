//! Compiles `/proto` with protox, so that nobody needs `protoc`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// Messages that carry secrets: their `Debug` is written by hand in `src/secret_messages.rs` and says the name only.
const SECRET_MESSAGES: &[&str] = &[
    ".gatehouse.auth.v1.RegisterRequest",
    ".gatehouse.auth.v1.SignInRequest",
    ".gatehouse.auth.v1.TokenPair",
    ".gatehouse.auth.v1.RefreshRequest",
    ".gatehouse.auth.v1.ChangePasswordRequest",
    ".gatehouse.auth.v1.IssueTokenRequest",
    ".gatehouse.auth.v1.IssueTokenResponse",
    ".gatehouse.auth.v1.ExchangeTokenRequest",
    ".gatehouse.auth.v1.ExchangeTokenResponse",
    ".gatehouse.auth.v1.IntrospectTokenRequest",
    ".gatehouse.auth.v1.IntrospectTokenResponse",
    ".gatehouse.auth.v1.RevokeTokenRequest",
    ".gatehouse.auth.v1.CreateApiKeyResponse",
    ".gatehouse.auth.v1.RotateApiKeyResponse",
    ".gatehouse.token_broker.v1.BeginConnectionResponse",
    ".gatehouse.token_broker.v1.CompleteConnectionRequest",
    ".gatehouse.token_broker.v1.GetAccessTokenResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true);
    for service in ["auth", "token_broker", "job", "audit"] {
        compiler.open_file(format!("gatehouse/{service}/v1/{service}.proto"))?;
    }
    // prost drops extensions that it does not know, so the access option survives only in these bytes.
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    let mut builder = tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .codec_path("crate::codec::ProtoCodec")
        .skip_debug(SECRET_MESSAGES.iter().copied());
    builder = builder.bytes("."); // Leaves and checkpoints are shared, not copied.
    builder.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
