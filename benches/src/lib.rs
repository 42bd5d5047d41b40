//! Benches of Dunlin's parts; see `benches/`. Run them with `cargo bench -p dunlin-benches`. `dunlin bench` measures a whole cluster.
