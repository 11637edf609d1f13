# Make .venv and install localgemma with the llama.cpp build that suits this machine; see scripts\bootstrap.ps1 --help.
$script = Join-Path $PSScriptRoot "bootstrap.py"
$check = "import sys; sys.exit(sys.version_info < (3, 11))"
foreach ($candidate in @(@("py", "-3.13"), @("py", "-3.12"), @("py", "-3.11"), @("python"), @("python3"))) {
    $name = $candidate[0]
    $first = @($candidate | Select-Object -Skip 1)
    if (-not (Get-Command $name -ErrorAction SilentlyContinue)) { continue }
    & $name @first -c $check 2>$null
    if ($LASTEXITCODE -eq 0) {
        & $name @first $script @args
        exit $LASTEXITCODE
    }
}
Write-Error "Python 3.11 or newer is needed, and none was found: install it with: winget install Python.Python.3.12"
exit 1
