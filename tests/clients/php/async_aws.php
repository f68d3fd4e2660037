<?php
require '/usr/share/php/AsyncAws/Core/autoload.php';

// Asks so often, so many milliseconds apart, and prints a line for each answer: `arn ARN`, or `error WHY`.
$sts = new AsyncAws\Core\Sts\StsClient();
for ($number = 0; $number < $argv[1]; $number++) {
    if ($number > 0) {
        usleep($argv[2] * 1000);
    }
    try {
        $arn = $sts->getCallerIdentity()->getArn();
        echo "arn $arn\n";
        $failed = false;
    } catch (Throwable $error) {
        echo 'error ', get_class($error), ': ', preg_replace('/\s+/', ' ', $error->getMessage()), "\n";
        $failed = true;
    }
}
exit($failed ? 1 : 0);
