#!/usr/bin/env bash
# What some tests ask for beside Python packages: PostgreSQL and a browser. Where they cannot be had, those tests skip.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)

if [ ${#missing[@]} -eq 0 ]; then
    echo "PostgreSQL and a browser are here."
elif ! command -v apt-get >/dev/null; then
    echo "Not here: ${missing[*]}. There is no apt-get to bring them: tests that need them skip."
elif [ "$(id -u)" -ne 0 ]; then
    echo "Not here: ${missing[*]}. Only root may install them: sudo bash $0. Tests that need them skip."
elif ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}"; }; then
    echo "Could not install ${missing[*]}: tests that need them skip."
fi
