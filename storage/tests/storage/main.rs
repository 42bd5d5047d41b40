//! The engine from outside: against a model, across crashes, with faults of every kind.

mod basics;
mod cold;
mod collection;
mod crash;
mod digests;
mod faults;
mod fixture;
mod outside;
mod pinned;
mod rot;
mod staging;
mod support;
mod tables;
mod threads;
mod verify;
