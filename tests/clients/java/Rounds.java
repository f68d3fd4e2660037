/** Asks so often, so many milliseconds apart, and prints a line for each answer: `arn ARN`, or `error WHY`. */
final class Rounds {
    interface Ask {
        String arn() throws Exception;
    }

    static void run(String[] arguments, Ask ask) throws InterruptedException {
        int count = Integer.parseInt(arguments[0]);
        long pause = Long.parseLong(arguments[1]);
        boolean failed = false;
        for (int number = 0; number < count; number++) {
            if (number > 0) {
                Thread.sleep(pause);
            }
            try {
                System.out.println("arn " + ask.arn());
                failed = false;
            } catch (Exception error) {
                System.out.println("error " + error.toString().replaceAll("\\s+", " "));
                failed = true;
            }
        }
        System.exit(failed ? 1 : 0);
    }
}
