//! What frameworks write about an instance into a key-value registry. Each layout is a pure decoder.
