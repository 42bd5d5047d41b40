//! Tests over the crate's public surface, in one binary.

mod protocol {
    mod combine;
    mod decide;
    mod decoders;
    mod explorer;
    mod generate;
}
