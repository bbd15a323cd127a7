#!/usr/bin/env bash
# Installs with apt what tests need and this machine lacks: a JDK of 17 or later, Maven, Chromium, and the one
# library that Playwright's own program needs (a minimal Debian has not got it). Says what it does, and does
# nothing when nothing is missing. PostgreSQL comes with pip, Apache Kafka with Maven.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

java_release() {
    java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1
}

packages=()
missing=()
if ! command -v java >/dev/null || ! command -v javac >/dev/null || [ "$(java_release)" -lt 17 ]; then
    missing+=("a JDK of 17 or later")
    packages+=(jdk)
fi
if ! command -v mvn >/dev/null; then
    missing+=("Maven")
    packages+=(maven)
fi
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null &&
    ! command -v google-chrome >/dev/null; then
    missing+=("Chromium")
    packages+=(chromium fonts-liberation)
fi
if ! .venv/bin/python -m playwright --version >/dev/null 2>&1; then
    missing+=("libatomic, for Playwright")
    packages+=(libatomic1)
fi
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

list=$(printf ', %s' "${missing[@]}")
list=${list:2}
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo)
fi
if ! command -v apt-get >/dev/null || ! command -v "${as_root[0]:-apt-get}" >/dev/null; then
    echo "error: tests need what is not installed: $list. Install it, then run this again." >&2
    exit 1
fi

apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get --quiet=2 -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null
}

echo "Not installed: $list. Updating apt's lists ..."
apt update
jdk=openjdk-17-jdk-headless
if ! apt-cache show "$jdk" >/dev/null 2>&1; then
    jdk=default-jdk-headless
fi
packages=("${packages[@]/#jdk/$jdk}")
echo "Installing ${packages[*]} (up to two minutes) ..."
apt install --yes --no-install-recommends "${packages[@]}" >/dev/null
if [ "$(java_release)" -lt 17 ]; then
    echo "error: 'java' is version $(java_release); Apache Kafka needs 17 or later. Put a newer one first on PATH." >&2
    exit 1
fi
