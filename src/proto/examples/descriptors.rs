//! Writes all of `proto/` as a serialized `google.protobuf.FileDescriptorSet` to the standard output,
//! for the test that compares it with the descriptors of an installed Feast.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(proto::DESCRIPTORS)
}
