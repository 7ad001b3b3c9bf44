"""The figures that decide: native awaitables against their peers and their floors."""
