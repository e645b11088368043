//! The origin: pull-through to registries, metainfo, first seeder.
